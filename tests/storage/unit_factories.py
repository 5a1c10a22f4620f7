"""The unit types that the conformance suite runs against."""

from __future__ import annotations

from pathlib import Path

import unit_samples as samples

from reconciler.storage import directory, identities, units
from reconciler.storage.dedupe import pools


def _create_directory(root: Path) -> identities.Identity:
    identity = identities.new("Directory", samples.OWNER)
    identities.write(root, identity)
    return identity


def _open_directory(root: Path, identity: identities.Identity, owner: str | None) -> units.StorageUnit:
    return directory.DirectoryUnit(name="unit", root=root, identity=identity, owner=owner)


def _create_pool(root: Path) -> identities.Identity:
    identity = identities.new("DedupePool", samples.OWNER)
    pools.create(root, identity)
    identities.write(root, identity)
    return identity


def _open_pool(root: Path, identity: identities.Identity, owner: str | None) -> units.StorageUnit:
    return pools.DedupePool(name="unit", root=root, identity=identity, owner=owner)


# FACTORIES: one entry per unit type. Adding one is all it takes to put a type under the whole suite.
FACTORIES: list[samples.Factory] = [
    samples.Factory(
        name="Directory",
        create=_create_directory,
        open=_open_directory,
        write_points=(
            "directory.disk-synced:1",
            "directory.disk-synced:2",
            "directory.attachment-synced:1",
            "directory.attachment-synced:2",
            "directory.before-rename",
            "directory.after-rename",
        ),
        reattach_points=("directory.reattached",),
        delete_points=("directory.delete-renamed",),
        full_size=16 * samples.MIB,
        exact=True,
    ),
    samples.Factory(
        name="DedupePool",
        create=_create_pool,
        open=_open_pool,
        write_points=(
            "pool.registered",
            "pool.attachment-placed:1",
            "pool.attachment-placed:2",
            "pool.container-written:1",
            "pool.container-written:3",
            "pool.container-renamed:1",
            "pool.container-renamed:3",
            "pool.container-indexed:3",
            "pool.before-manifest",
            "pool.after-manifest",
        ),
        reattach_points=("pool.registered", "pool.container-renamed:2", "pool.reattached"),
        delete_points=("pool.manifest-removed",),
        full_size=48 * samples.MIB,
        exact=False,
    ),
]
