"""Whatever disks and edits come along a chain: every image reads back bit for bit, with the digests it should have."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import unit_samples as samples
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit_samples import MIB, SampleDisk

from reconciler.base import extents, meters
from reconciler.storage import units


@dataclasses.dataclass(frozen=True)
class Edit:
    """Bytes written over a disk, at a fraction of its size."""

    at: float
    length: int
    #: None writes zeros.
    seed: int | None


@dataclasses.dataclass(frozen=True)
class Step:
    """One image of the chain."""

    edits: tuple[Edit, ...]
    #: Bytes added to the disk before the edits; more than none makes it a full.
    growth: int
    #: ``Full``, ``FullRead`` or ``Known``.
    how: str
    #: Ranges named as changed although they may not be, as fractions of the disk.
    noise: tuple[float, ...]
    #: Whether the disk lists only the blocks that hold data.
    sparse: bool


_EDITS = st.builds(
    Edit,
    at=st.floats(0, 1),
    length=st.one_of(st.integers(1, 5000), st.sampled_from([MIB, 2 * MIB])),
    seed=st.one_of(st.none(), st.integers(0, 9)),
)
_STEPS = st.builds(
    Step,
    edits=st.lists(_EDITS, max_size=4).map(tuple),
    growth=st.sampled_from([0, 0, 0, 1, 4096, MIB]),
    how=st.sampled_from(["Full", "FullRead", "Known", "Known"]),
    noise=st.lists(st.floats(0, 0.999), max_size=2).map(tuple),
    sparse=st.booleans(),
)
_SIZES = st.one_of(st.integers(0, 3 * MIB), st.sampled_from([MIB, 2 * MIB, 4 * MIB]))


def _apply(data: bytes, edits: tuple[Edit, ...]) -> tuple[bytes, list[extents.Extent]]:
    ranges = []
    for edit in edits:
        offset = int(edit.at * len(data))
        length = min(edit.length, len(data) - offset)
        new = bytes(length) if edit.seed is None else samples.noise(length, edit.seed)
        data = samples.patch(data, offset, new)
        ranges.append((offset, length))
    return data, ranges


def _data_ranges(data: bytes) -> extents.Extents:
    pieces = ((at, min(4096, len(data) - at)) for at in range(0, len(data), 4096))
    return extents.normalise((at, length) for at, length in pieces if any(data[at : at + length]))


def _run_step(unit: units.StorageUnit, number: int, step: Step, old: bytes) -> bytes:
    new, ranges = _apply(old + bytes(step.growth), step.edits)
    incremental = number > 0 and step.how != "Full" and not step.growth
    parent = f"i{number - 1}" if incremental else None
    named = ranges + [(int(at * len(new)), 1) for at in step.noise if new]
    changed = extents.normalise(named) if incremental and step.how == "Known" else None
    disk = SampleDisk("d", new, data_extents=_data_ranges(new) if step.sparse else None)
    label = samples.label(f"i{number}", parent=parent)
    commit, written = samples.store(unit, label, [disk], parent=parent, changed=changed)
    record = commit.label.disks[0]
    assert record.digest == samples.digest(new)
    assert record.blake3 == (None if changed is not None else blake3(new).hexdigest())
    assert written["d"].changed == (samples.different(old, new) if incremental else None)
    assert extents.total(disk.reads) == extents.total(extents.normalise(disk.reads)), "a byte was read twice"
    if changed is not None:
        assert extents.intersect(
            extents.normalise(disk.reads), extents.align(changed, MIB, len(new))
        ) == extents.normalise(disk.reads), "more was read than the blocks around the changes"
    return new


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=_SIZES, seed=st.integers(0, 99), steps=st.lists(_STEPS, min_size=1, max_size=4))
def test_every_image_of_every_chain_reads_back(
    factory: samples.Factory, size: int, seed: int, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        unit = factory.open(root, factory.create(root), samples.OWNER)
        data = samples.patch(samples.noise(size, seed), size // 3, bytes(size // 4))
        versions = []
        for number, step in enumerate(steps):
            data = _run_step(unit, number, step, data)
            versions.append(data)
        for number, version in enumerate(versions):
            assert samples.load(unit, f"i{number}", "d") == version
            opened = unit.open(f"i{number}")
            assert opened.block_digests("d") == samples.block_list(version)
            covered = opened.disk("d").extents()
            assert extents.intersect(covered, _data_ranges(version)) == _data_ranges(version)
            opened.close()
            assert unit.verify(f"i{number}", meter=meters.Meter()) == ()
        unit.close()
