"""A process killed with SIGKILL while it writes or deletes: afterwards an image is there whole, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import unit_crash_child as child
import unit_factories
import unit_samples as samples

from reconciler.base import meters
from reconciler.storage import units

_REPOSITORY = Path(__file__).parents[2]
_WRITE = [(factory, point) for factory in unit_factories.FACTORIES for point in factory.write_points]
_REATTACH = [(factory, point) for factory in unit_factories.FACTORIES for point in factory.reattach_points]
_DELETE = [(factory, point) for factory in unit_factories.FACTORIES for point in factory.delete_points]


def _name(value: object) -> str:
    return value.name if isinstance(value, samples.Factory) else str(value)


def _run(factory: samples.Factory, root: Path, act: str, point: str = "") -> int:
    environment = {**os.environ, "HOLDFAST_TEST": "1", "HOLDFAST_CRASH": point, "PYTHONPATH": str(_REPOSITORY)}
    command = [sys.executable, child.__file__, factory.name, str(root), act]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def _whole_or_nothing(unit: units.StorageUnit) -> bool:
    """Whether the image is there; if so, it is there whole."""
    assert unit.unreadable() == ()
    if not samples.held(unit):
        return False
    assert unit.verify("img-1", meter=meters.Meter()) == ()
    for name, data in child.DATA.items():
        assert samples.load(unit, "img-1", name) == data
    assert samples.load_attached(unit, "img-1") == child.ATTACHED
    return True


def _can_go_on(reopen: Callable[..., units.StorageUnit], root: Path, before: set[str], *, exact: bool) -> None:
    """After a sweep nothing is left of the dead writer, and the image can be written anew."""
    unit = reopen()
    unit.sweep([])
    if exact:
        assert samples.tree(root) == before
    samples.store(unit, samples.label(), child.DATA, attached=child.ATTACHED)
    assert _whole_or_nothing(unit)
    assert unit.capacity().used <= 8 * samples.MIB if exact else True


@pytest.mark.parametrize(("factory", "point"), _WRITE, ids=_name)
def test_killed_while_writing(
    factory: samples.Factory, point: str, root: Path, reopen: Callable[..., units.StorageUnit]
) -> None:
    before = samples.tree(root)
    assert _run(factory, root, "write", point) == -9
    if _whole_or_nothing(reopen()):
        reopen().delete("img-1")
    _can_go_on(reopen, root, before, exact=factory.exact)


@pytest.mark.parametrize("act", ["begin", "die"])
def test_killed_between_the_named_points(
    factory: samples.Factory, act: str, root: Path, reopen: Callable[..., units.StorageUnit]
) -> None:
    before = samples.tree(root)
    assert _run(factory, root, act) == -9
    assert not _whole_or_nothing(reopen())
    _can_go_on(reopen, root, before, exact=factory.exact)


@pytest.mark.parametrize(("factory", "point"), _DELETE, ids=_name)
def test_killed_while_deleting(
    factory: samples.Factory, point: str, root: Path, reopen: Callable[..., units.StorageUnit]
) -> None:
    before = samples.tree(root)
    samples.store(reopen(), samples.label(), child.DATA, attached=child.ATTACHED)
    assert _run(factory, root, "delete", point) == -9
    if _whole_or_nothing(reopen()):
        reopen().delete("img-1")
    assert samples.held(reopen()) == {}
    _can_go_on(reopen, root, before, exact=factory.exact)


@pytest.mark.parametrize(("factory", "point"), _REATTACH, ids=_name)
def test_killed_while_an_attachment_takes_another_ones_place(
    factory: samples.Factory, point: str, root: Path, reopen: Callable[..., units.StorageUnit]
) -> None:
    samples.store(reopen(), samples.label(), child.DATA, attached=child.ATTACHED)
    assert _run(factory, root, "reattach", point) == -9
    assert _whole_or_nothing(reopen())
    assert _run(factory, root, "reattach") == 0
    reopen().sweep([])
    again = reopen()
    assert again.verify("img-1", meter=meters.Meter()) == ()
    assert samples.load_attached(again, "img-1") == {**child.ATTACHED, "files": child.REPLACED}
    assert samples.load(again, "img-1", "b") == child.DATA["b"]
    if factory.exact:
        (folder,) = (path.parent for path in root.rglob("image.json"))
        assert len([path for path in folder.iterdir() if path.name.startswith("attachment-files.")]) == 2
    again.delete("img-1")
    again.reclaim(meter=meters.Meter())
    assert not _whole_or_nothing(reopen())


def test_what_a_killed_writer_left_is_kept_while_its_image_is_said_to_live(
    factory: samples.Factory, root: Path, reopen: Callable[..., units.StorageUnit]
) -> None:
    assert _run(factory, root, "die") == -9
    left = samples.tree(root)
    unit = reopen()
    unit.sweep(["img-1"])
    if factory.exact:
        assert samples.tree(root) == left
        assert unit.sweep([]) >= 2 * samples.MIB
    samples.store(unit, samples.label(), child.DATA, attached=child.ATTACHED)
    assert _whole_or_nothing(unit)


def test_a_process_that_was_not_killed_leaves_the_image(
    factory: samples.Factory, root: Path, reopen: Callable[..., units.StorageUnit]
) -> None:
    assert _run(factory, root, "write") == 0
    assert _whole_or_nothing(reopen())
    assert _run(factory, root, "delete") == 0
    assert not _whole_or_nothing(reopen())
