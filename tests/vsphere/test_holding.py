"""A machine in a holding area: what is copied, what is refused, who gets the space, and what a dead job leaves."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from reconciler.base import errors, extents, meters
from reconciler.operations import holding, reservations
from reconciler.sources import hooks
from reconciler.sources import machines as port
from reconciler.sources.diskimages import machines

MIB = 1 << 20
SIZE = 9 * MIB + 4096
DATA = ((0, MIB + 512), (3 * MIB, 2 * MIB), (SIZE - 4096, 4096))


@pytest.fixture
def guests(tmp_path: Path) -> Path:
    """A folder with one machine of two sparse raw disks."""
    folder = tmp_path / "guests" / "oblVM1"
    folder.mkdir(parents=True)
    for number, name in enumerate(("data.raw", "system.raw")):
        rng = random.Random(number)
        with (folder / name).open("wb") as file:
            file.truncate(SIZE)
            for offset, length in DATA:
                file.seek(offset)
                file.write(rng.randbytes(length))
    return folder.parent


@pytest.fixture
def area(tmp_path: Path) -> holding.Area:
    """An area with room for everything."""
    folder = tmp_path / "area"
    folder.mkdir()
    return holding.Area(path=folder, max_size=64 * MIB, streams=2)


def freeze(guests: Path, commands: hooks.Hooks | None = None) -> port.Reading:
    """A reading of the only machine."""
    source = machines.DiskImages(path=guests, machines="*", disks=("*.raw",), hooks=commands)
    (machine,) = source.inventory().machines
    return source.freeze(machine.id)


def job(name: str = "j-000001", said: Callable[[str], None] = lambda _line: None) -> holding.Job:
    """A job that nobody stops."""
    return holding.Job(id=name, meter=meters.Meter(), log=said)


def all_of(live: port.Reading) -> dict[str, holding.Need]:
    """Everything."""
    return {disk.name: holding.Need(changed=None) for disk in live.disks}


@contextlib.contextmanager
def held(
    live: port.Reading, area: holding.Area, needs: Mapping[str, holding.Need], who: holding.Job | None = None
) -> Iterator[holding.Held]:
    """A machine that is held."""
    with contextlib.closing(live), contextlib.closing(holding.hold(live, area, needs, who or job())) as found:
        yield found


def left(area: holding.Area) -> list[str]:
    """What lies in an area, but for its lock."""
    return sorted(path.name for path in area.path.iterdir() if not path.name.startswith("."))


def test_a_held_machine_is_the_frozen_one_whatever_happens_to_it_afterwards(guests: Path, area: holding.Area) -> None:
    said: list[str] = []
    before = {path.name: path.read_bytes() for path in (guests / "oblVM1").iterdir()}
    live = freeze(guests)
    state = dict(live.state())
    with held(live, area, all_of(live), job(said=said.append)) as found:
        for path in (guests / "oblVM1").iterdir():
            path.write_bytes(b"x" * SIZE)
        assert [disk.name for disk in found.disks] == sorted(before)
        for disk in found.disks:
            # Read at odd places, holes included.
            got = b"".join(bytes(disk.pread(o, min(MIB - 512, disk.size - o))) for o in range(0, disk.size, MIB - 512))
            assert got == before[disk.name]
            assert extents.total(disk.extents()) < SIZE, "holes stay holes"
        assert found.finish() == port.Verdict(failed=(), consistency="Offline", warnings=())
        assert dict(found.state()) == state
        (folder,) = left(area)
        assert folder.startswith("j-000001.")
        mode = (area.path / folder / "0.raw").stat()
        assert mode.st_mode & 0o077 == 0, "a guest's bytes are nobody else's"
        assert mode.st_blocks * 512 < SIZE, "the copy is sparse too"
    assert left(area) == []
    assert len(said) == 1 and said[0].startswith("held ") and "/s;" in said[0], said


def test_only_the_blocks_around_changes_are_copied_and_the_rest_is_refused(guests: Path, area: holding.Area) -> None:
    content = (guests / "oblVM1" / "data.raw").read_bytes()
    live = freeze(guests)
    told = port.DiskChanges(
        changed=((4 * MIB + 7, 1), (6 * MIB, 512)), reason=port.Found(code="Known", message="by the test")
    )
    needs = {**all_of(live), "data.raw": holding.Need(changed=told.changed, told=told)}
    with held(live, area, needs) as found:
        disk = found.disks[0]
        # The whole block around the first change, and the hole around the second one.
        assert disk.pread(4 * MIB, MIB) == content[4 * MIB : 5 * MIB]
        assert disk.pread(6 * MIB, MIB) == bytes(MIB)
        assert found.changes("data.raw", {}) == told
        for offset, length in ((0, 512), (3 * MIB, MIB), (4 * MIB - 1, 2), (SIZE - 512, 512), (0, SIZE)):
            with pytest.raises(holding.NotHeld, match=r"data\.raw: .* not in the holding area"):
                disk.pread(offset, length)
        assert found.disks[1].pread(0, SIZE) == (guests / "oblVM1" / "system.raw").read_bytes()
        with pytest.raises(holding.NotHeld):
            found.changes("system.raw", {})


def test_hidden_blocks_are_not_copied(guests: Path, area: holding.Area) -> None:
    live = freeze(guests)
    needs = {name: holding.Need(changed=None, hidden=((3 * MIB, MIB + 512),)) for name in ("data.raw", "system.raw")}
    with held(live, area, needs) as found:
        with pytest.raises(holding.NotHeld):
            found.disks[0].pread(3 * MIB, 512)
        assert found.disks[0].pread(4 * MIB, MIB) == (guests / "oblVM1" / "data.raw").read_bytes()[4 * MIB : 5 * MIB]


def test_the_after_hook_runs_when_the_machine_is_let_go_and_its_failure_is_told_at_the_end(
    guests: Path, area: holding.Area, tmp_path: Path
) -> None:
    mark = tmp_path / "thawed"
    commands = hooks.Hooks(before=(), after=("/bin/sh", "-c", f"date +%N >> {mark}; exit 3"), timeout=30)
    live = freeze(guests, commands)
    found = holding.hold(live, area, all_of(live), job())
    assert mark.read_text().count("\n") == 1
    assert found.disks[0].pread(0, 512) != bytes(512)
    live.close()
    with pytest.raises(errors.HookFailed):
        found.close()
    found.close()
    assert mark.read_text().count("\n") == 1, "once"
    assert left(area) == []


def test_a_disk_that_shrinks_while_it_is_held_is_missing_and_the_others_are_not(
    guests: Path, area: holding.Area
) -> None:
    live = freeze(guests)
    needs = all_of(live)
    live.disks[0].extents()
    os.truncate(guests / "oblVM1" / "data.raw", MIB)
    with held(live, area, needs) as found:
        assert [disk.name for disk in found.disks] == ["system.raw"]
        assert any("data.raw" in one.message for one in found.missing), found.missing
        assert any("data.raw" in one.message for one in found.finish().failed)
    for path in (guests / "oblVM1").iterdir():
        path.write_bytes(b"y" * SIZE)
    live = freeze(guests)
    for disk in live.disks:
        disk.extents()
        os.truncate(guests / "oblVM1" / disk.name, MIB)
    with contextlib.closing(live), pytest.raises(errors.SourceError, match=r"data\.raw.*system\.raw"):
        holding.hold(live, area, all_of(live), job())
    assert left(area) == []


def test_who_does_not_fit_waits_with_nothing_copied_and_goes_when_there_is_room(
    guests: Path, area: holding.Area
) -> None:
    # The blocks of one disk with data in them: two, two and the two of the last stretch's ends.
    need = 2 * extents.total(extents.align(DATA, MIB, SIZE))
    small = holding.Area(path=area.path, max_size=need + MIB, streams=1)
    first, second = freeze(guests), freeze(guests)
    with held(first, small, all_of(first)):
        with contextlib.closing(second), pytest.raises(reservations.HoldingAreaFull) as refused:
            holding.hold(second, small, all_of(second), job("j-000002"))
        assert len(left(area)) == 1
        assert refused.value.retryable
        assert "are needed, 1.00 MiB are left; maxSize is" in refused.value.message, refused.value.message
        assert "goes on when other jobs have ended" in str(refused.value.hint)
    second = freeze(guests)
    with held(second, small, all_of(second)):
        assert len(left(area)) == 1
    never = holding.Area(path=area.path, max_size=need - 1, streams=1)
    third = freeze(guests)
    with contextlib.closing(third), pytest.raises(reservations.HoldingAreaFull, match="maxSize") as refused:
        holding.hold(third, never, all_of(third), job())
    assert "raise maxSize" in str(refused.value.hint)


def test_the_file_system_must_have_room_too_beside_what_others_were_promised(area: holding.Area) -> None:
    free = reservations.usage(area.path).free
    with pytest.raises(reservations.HoldingAreaFull, match="its file system has"):
        reservations.reserve(area.path, 4 * free, "j-000001", 2 * free)
    first = reservations.reserve(area.path, 4 * free, "j-000001", free // 2)
    with pytest.raises(reservations.HoldingAreaFull, match="its file system has"):
        reservations.reserve(area.path, 4 * free, "j-000002", free // 2 + 64 * MIB)
    assert reservations.usage(area.path).promised == free // 2
    first.close()
    first.close()
    assert reservations.usage(area.path).promised == 0


def test_who_waits_for_room_hears_a_cancel_and_waits_for_nobody_who_is_not_there(area: holding.Area) -> None:
    said: list[str] = []
    looks = iter(range(3))

    def check() -> None:
        if next(looks, None) is None:
            raise errors.Cancelled("cancelled on request")

    with contextlib.closing(reservations.reserve(area.path, 10 * MIB, "j-000001", 8 * MIB)):
        with pytest.raises(errors.Cancelled):
            reservations.wait(area.path, 10 * MIB, 3 * MIB, check, said.append)
        assert len(said) == 1 and "3.00 MiB are needed, 2.00 MiB are left" in said[0], "told once"
        reservations.wait(area.path, 10 * MIB, 2 * MIB, lambda: None, said.append)
    reservations.wait(area.path, 10 * MIB, 3 * MIB, lambda: None, said.append)
    with pytest.raises(reservations.HoldingAreaFull):
        reservations.wait(area.path, 10 * MIB, 11 * MIB, lambda: None, said.append)
    with pytest.raises(reservations.HoldingAreaFull):
        free = reservations.usage(area.path).free
        reservations.wait(area.path, 10 * free, 2 * free, lambda: None, said.append)
    assert len(said) == 1


@pytest.mark.parametrize("missing", ["gone", "a-file"])
def test_an_area_that_is_not_there_says_so(guests: Path, tmp_path: Path, missing: str) -> None:
    (tmp_path / "a-file").write_text("")
    live = freeze(guests)
    nowhere = holding.Area(path=tmp_path / missing, max_size=MIB * 100, streams=1)
    with contextlib.closing(live), pytest.raises(errors.SourceError, match="there is no such folder") as refused:
        holding.hold(live, nowhere, all_of(live), job())
    assert refused.value.hint == "make it, or mount it"


def test_a_cancel_stops_the_copy_and_leaves_nothing(guests: Path, area: holding.Area) -> None:
    live = freeze(guests)
    meter = meters.Meter()
    meter.cancel()
    with contextlib.closing(live), pytest.raises(errors.Cancelled):
        holding.hold(live, area, all_of(live), holding.Job(id="j-1", meter=meter, log=print))
    assert left(area) == []


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_holding
from reconciler.operations import holding
live = test_holding.freeze(Path(sys.argv[1]))
area = holding.Area(path=Path(sys.argv[2]), max_size=64 << 20, streams=1)
held = holding.hold(live, area, test_holding.all_of(live), test_holding.job("j-000077"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("point", ["holding.copied", "holding.released", None])
def test_what_a_killed_job_left_is_swept_by_the_next_one_and_living_jobs_are_left_alone(
    guests: Path, area: holding.Area, tmp_path: Path, point: str | None
) -> None:
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD).format(tests=str(Path(__file__).parent)))
    variables = {"HOLDFAST_TEST": "1", "HOLDFAST_CRASH": point} if point else {}
    child = subprocess.Popen(
        [sys.executable, str(script), str(guests), str(area.path)],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None and child.stdout is not None
    with child:
        if point is None:
            assert child.stdout.readline() == "held\n"
            reservations.sweep(area.path)
            assert [name.split(".")[0] for name in left(area)] == ["j-000077"], "it lives"
            assert reservations.usage(area.path).promised > 0
            child.kill()
        assert child.wait(30) == -signal.SIGKILL
    assert len(left(area)) == 1
    others = area.path / "j-000001.not-ours"
    others.mkdir()
    (area.path / "abc.0123abcd").mkdir()
    (area.path / "abc.0123abcd" / "notes").write_text("somebody's")
    live = freeze(guests)
    with held(live, area, all_of(live)):
        assert [name.split(".")[0] for name in left(area)] == ["abc", "j-000001", "j-000001"]
    assert left(area) == ["abc.0123abcd", "j-000001.not-ours"]
