"""Nights of virtual machines under faults: every machine of a pass meets one of its own, and afterwards all is well.

``test_vsphere_faults`` runs each fault in each phase once, ``hack/soak vsphere`` many nights of them at random. While a
pass runs, a guest writes as soon as its snapshot is there. A round holds what it finds against what the lab froze: every
Complete image is one of the states frozen for it, no snapshot and no lease outlives the next good pass, and what went
wrong was said with machine, phase and fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import virtual_estates
from virtual_estates import VirtualEstate

from reconciler.storage import opening, units


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that goes wrong for one machine."""

    #: The call, as the lab names it; empty where ``mode`` or ``act`` says it all.
    on: str
    #: The rest of the lab's rule.
    rule: Mapping[str, Any]
    #: What a job that failed by it must say, one of these words.
    words: tuple[str, ...] = ()
    #: What a job that failed must say of where it was, one of these words.
    phase: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``CreateSnapshot_Task-reset``."""
        return "-".join(str(part) for part in (self.on, *self.rule.values()))


_BROKEN = ("503", "reset", "Connection", "answer", "closed", "timed out", "incomplete", "short", "Remote end")


def _on(on: str, phase: Sequence[str], *rules: tuple[Mapping[str, Any], tuple[str, ...]]) -> list[Fault]:
    return [Fault(on=on, rule=rule, words=words, phase=tuple(phase)) for rule, words in rules]


_HTTP: tuple[tuple[Mapping[str, Any], tuple[str, ...]], ...] = (
    ({"kind": "http503"}, _BROKEN),
    ({"kind": "reset"}, _BROKEN),
    ({"kind": "slow", "seconds": 0.4}, ()),
)
#: Every fault in every phase that has it.
FAULTS: tuple[Fault, ...] = (
    *_on("ReconfigVM_Task", ["track", "reconfig"], *_HTTP,
         ({"kind": "task", "fault": "GenericVmConfigFault"}, ("GenericVmConfigFault",)),
         ({"kind": "fault", "fault": "TaskInProgress"}, ("TaskInProgress",))),
    *_on("CreateSnapshot_Task", ["snapshot"], *_HTTP,
         ({"kind": "task", "fault": "FileLocked"}, ("FileLocked",)),
         ({"kind": "task", "fault": "GenericVmConfigFault", "late": True}, ("GenericVmConfigFault",)),
         ({"kind": "fault", "fault": "TaskInProgress"}, ("TaskInProgress",)),
         ({"kind": "reset", "count": 0}, _BROKEN),
         ({"kind": "truncate", "afterBytes": 60}, _BROKEN),
         ({"kind": "expire"}, ())),
    *_on("QueryChangedDiskAreas", ["area", "changed"], *_HTTP,
         ({"kind": "fault", "fault": "FileFault"}, ("FileFault",)),
         ({"kind": "fault", "fault": "FileFault", "count": 0}, ("FileFault",)),
         ({"kind": "truncate", "afterBytes": 60}, _BROKEN),
         ({"kind": "expire"}, ())),
    *_on("GET /folder", ["read", "Hard disk", "datastore"], *_HTTP,
         ({"kind": "reset", "afterBytes": 100_000}, _BROKEN),
         ({"kind": "truncate", "afterBytes": 100_000}, _BROKEN),
         ({"kind": "http503", "count": 0}, _BROKEN),
         ({"kind": "truncate", "afterBytes": 70_000, "count": 0}, _BROKEN),
         ({"kind": "expire"}, ())),
    *_on("RemoveSnapshot_Task", ["removal", "remov"], *_HTTP,
         ({"kind": "task", "fault": "GenericVmConfigFault"}, ("GenericVmConfigFault",)),
         ({"kind": "task", "fault": "GenericVmConfigFault", "count": 0}, ("GenericVmConfigFault",)),
         ({"kind": "task", "fault": "GenericVmConfigFault", "late": True}, ()),
         ({"kind": "fault", "fault": "TaskInProgress", "count": 2}, ("TaskInProgress",)),
         ({"kind": "reset", "count": 0}, _BROKEN),
         ({"kind": "expire"}, ())),
)  # fmt: skip
#: How the vCenter may answer everybody, and all must be right all the same.
MODES: tuple[Mapping[str, Any], ...] = (
    {"starIsWholeDisk": True}, {"spuriousAreas": True}, {"wrongStar": True}, {"areasPerAnswer": 1}, {"taskMillis": 200},
)  # fmt: skip


@dataclasses.dataclass(kw_only=True, slots=True)
class Score:
    """What the rounds met."""

    rounds: int = 0
    #: Backups begun, each with a snapshot, a reading and a removal.
    cycles: int = 0
    states: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Snapshots that a pass left, and the next one removed.
    left: int = 0
    images: int = 0


class _Guests:
    """Guests that write as soon as they are frozen; remembers what was frozen."""

    def __init__(self, estate: VirtualEstate) -> None:
        self.estate = estate
        #: Machine -> snapshots -> label -> SHA-256.
        self.frozen: dict[str, dict[str, dict[str, str]]] = {}
        self.trouble: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Guests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            # A vCenter that is down, or a snapshot that has just gone, is what this is about.
            with contextlib.suppress(OSError, virtual_estates.vsphere_labs.LabError, AssertionError):
                for machine in self.estate.lab.state()["machines"]:
                    for snapshot in machine["snapshots"]:
                        self._look(machine, snapshot["moref"])

    def _look(self, machine: Mapping[str, Any], snapshot: str) -> None:
        known = self.frozen.setdefault(machine["name"], {})
        if snapshot in known:
            return
        known[snapshot] = {
            disk["label"]: _sha(self.estate.lab.frozen(machine["name"], disk["label"], snapshot))
            for disk in machine["disks"]
        }
        for disk in machine["disks"]:
            self.estate.guest_writes(machine["name"], disk["label"], places=2)


def night(estate: VirtualEstate, faults: Mapping[str, Fault], score: Score) -> None:
    """One pass in which each named machine meets its fault, then a good one; asserts what must hold after each."""
    lab, before = estate.lab, estate.contents()
    known = {job["id"] for job in _jobs(estate)}
    held = set(_held(estate))
    for machine, fault in faults.items():
        if fault.on:
            lab.fault(on=fault.on, vm=machine, **fault.rule)
    with _Guests(estate) as guests:
        said = estate.apply(code=None)
    assert not guests.trouble
    fresh = [job for job in _jobs(estate) if job["id"] not in known]
    score.cycles += sum(job["type"] == "Backup" for job in fresh)
    for job in fresh:
        score.states[f"{job['type']} {job['state']}"] += 1
        _require_words(job, faults, said)
    lab.clear_faults()
    lab.mode(starIsWholeDisk=False, spuriousAreas=False, wrongStar=False, areasPerAnswer=16, taskMillis=20)
    score.left += len(estate.snapshots())
    score.images += _require_images(estate, held, before, guests.frozen)
    _settle(estate)
    score.rounds += 1


def _settle(estate: VirtualEstate) -> None:
    """Good passes until nothing of ours is left at the vCenter; one is enough, more where a removal waits its turn."""
    for _ in range(3):
        said = estate.apply(code=None)
        if not estate.snapshots():
            break
        # A removal that failed waits a while before it is tried again.
        estate.set_clock(estate.now() + virtual_estates.DAY / 4)
    state = estate.lab.state()
    assert estate.snapshots() == [], said
    assert [one for one in state["leases"] if one["state"] in ("ready", "initializing")] == []


def _require_words(job: Mapping[str, Any], faults: Mapping[str, Fault], said: str) -> None:
    """A job that did not succeed names its machine, where it was, and the fault."""
    if job["state"] == "Succeeded" or job["type"] != "Backup":
        return
    assert job["state"] in ("Failed", "Partial"), (job, said)
    machine, message = job["client"], job["error"]["message"]
    fault = faults.get(machine)
    assert fault is not None, f"{machine} met no fault and did not succeed: {message}"
    assert machine in message, f"{fault.name}: no machine in {message!r}"
    assert any(word in message for word in fault.words), f"{fault.name}: no fault in {message!r}"
    assert any(word in message for word in fault.phase), f"{fault.name}: no phase in {message!r}"


def _require_images(
    estate: VirtualEstate,
    held: set[str],
    before: Mapping[str, Mapping[str, str]],
    frozen: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> int:
    """Every new Complete image is a state that was frozen for its machine; how many there are."""
    count = 0
    for id, (label, found) in _held(estate, without=held).items():
        if label.state != "Complete":
            continue
        states = [*frozen.get(label.client_name, {}).values()] or [before[label.client_name]]
        assert found in states, f"{id}: not what was frozen"
        count += 1
    return count


def _jobs(estate: VirtualEstate) -> list[dict[str, Any]]:
    return estate.items("jobs") if (estate.folder / ".holdfast" / "catalog.sqlite").exists() else []


def _held(
    estate: VirtualEstate, *, without: set[str] | None = None
) -> dict[str, tuple[units.ImageLabel, dict[str, str]]]:
    """Image id -> label, and with ``without`` the contents of those that are not in it."""
    result: dict[str, tuple[units.ImageLabel, dict[str, str]]] = {}
    for folder in (estate.folder / "units").iterdir():
        if (folder / "unit.json").exists():
            with contextlib.closing(opening.open_folder(folder)) as unit:
                for one in unit.list():
                    contents = {}
                    if without is not None and one.label.id not in without:
                        with contextlib.closing(unit.open(one.label.id)) as image:
                            contents = {disk.name: digest(image, disk.name) for disk in image.label.disks}
                    if without is None or one.label.id not in without:
                        result[one.label.id] = (one.label, contents)
    return result


def digest(image: units.StoredImage, name: str) -> str:
    """SHA-256 of a stored disk, holes included."""
    with contextlib.closing(image.disk(name)) as disk:
        data = bytearray(disk.size)
        for offset, length in disk.extents():
            data[offset : offset + length] = disk.pread(offset, length)
    return _sha(bytes(data))


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def estate_of(folder: Path, count: int, **settings: Any) -> Iterator[VirtualEstate]:
    """A lab of ``count`` machines that track changes, some with two disks, with something on each of them."""
    machines = virtual_estates.machines(count, changeTracking=True)
    for machine in machines[::3]:
        machine["disks"].append({"label": "Hard disk 2", "sizeBytes": 2 * virtual_estates.MIB})
    with virtual_estates.vsphere_labs.Lab.start(folder / "lab", machines=machines) as lab:
        estate = VirtualEstate(folder / "root", lab).build(
            limits={"maxConcurrentJobs": 8, "maxStreamsPerClient": 2},
            vcenter={"limits": {"perHost": 8, "perDatastore": 8, "openSnapshots": 16}},
            **settings,
        )
        for machine in machines:
            for disk in machine["disks"]:
                estate.guest_writes(machine["name"], disk["label"], places=6)
        yield estate


def soak(folder: Path, cycles: int, seed: int, say: Callable[[str], object] = len) -> Score:
    """Nights under random faults until ``cycles`` backups were begun; asserts in every night what must hold."""
    dice, score = random.Random(seed), Score()
    began = time.monotonic()
    with estate_of(folder, 8) as estate:
        while score.cycles < cycles:
            machines = [machine["name"] for machine in estate.lab.state()["machines"]]
            faults = {machine: dice.choice(FAULTS) for machine in machines if dice.random() < 0.7}
            if dice.random() < 0.5:
                estate.lab.mode(**dice.choice(MODES))
            for machine in machines:
                estate.guest_writes(machine, places=dice.randint(1, 6))
            night(estate, faults, score)
            estate.pass_day()
            if score.rounds % 5 == 0:
                passed = time.monotonic() - began
                say(f"{score.rounds} nights, {score.cycles} backups, {score.images} images, {passed:.0f} s")
    return score
