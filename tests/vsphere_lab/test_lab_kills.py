"""The lab is killed at any moment of its work and started again: no byte of a disk and of a snapshot is another."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab, vim, vmodl

SIZE = 2 << 20
BLOCK = 64 << 10
#: What a client of a server that dies may see.
GONE = (
    OSError,
    http.client.HTTPException,
    vim.fault.HostConnectFault,
    vim.fault.NotAuthenticated,
    vmodl.fault.ManagedObjectNotFound,
)


class Estate:
    """One machine and what its disk and its snapshots must hold."""

    def __init__(self, lab: Lab, name: str, rng: random.Random) -> None:
        self.lab, self.name, self.rng = lab, name, rng
        self.live = bytearray(SIZE)
        self.frozen: dict[str, bytes] = {}
        #: Blocks written since a snapshot had this change id; of an id that a dead peer gave, all the same.
        self.since: dict[str, set[int]] = {}
        self.rounds = self.compared = 0

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer, however often the peer dies meanwhile."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return question()
            except GONE:
                assert time.monotonic() < deadline, "the peer does not come back"
                time.sleep(0.02)

    def write(self) -> None:
        at = self.rng.randrange(SIZE - 70_000)
        data = self.rng.randbytes(self.rng.randint(1, 70_000))
        before = bytes(self.live[at : at + len(data)])
        try:
            self.lab.write(self.name, 2000, at, data)
        except GONE:
            now = self.ask(lambda: self.lab.read(self.name, 2000, at, len(data)))
            assert all(byte in (old, new) for byte, old, new in zip(now, before, data, strict=True))
            data = now
        # A write that the peer died of may have come in part or not at all.
        changed = {(at + n) // BLOCK for n, (old, new) in enumerate(zip(before, data, strict=True)) if old != new}
        for blocks in self.since.values():
            blocks.update(changed)
        self.live[at : at + len(data)] = data

    def step(self) -> None:
        for _ in range(3):
            self.write()
        name = f"{self.name}-{self.rounds}"
        self.rounds += 1
        gone = self.rng.choice(sorted(self.frozen)) if len(self.frozen) > 2 else None
        before = bytes(self.live)
        try:
            with clients.session(self.lab) as instance:
                vm = clients.find(instance, vim.VirtualMachine, self.name)
                if gone is None:
                    self.compare(vm, clients.snapshot(vm, name))
                else:
                    snapshot = self.named(vm.snapshot.rootSnapshotList, gone)
                    clients.done(snapshot.RemoveSnapshot_Task(removeChildren=False))
        except GONE:
            pass  # what became of it is seen below
        there = {one["name"] for one in self.ask(lambda: self.lab.machine(self.name))["snapshots"]}
        if name in there:
            self.frozen[name] = before
        if gone is not None and gone not in there:
            del self.frozen[gone]
        self.check()

    def compare(self, vm: Any, snapshot: Any) -> None:
        """No area that was written since an earlier snapshot is missing."""
        own = next(one for one in snapshot.config.hardware.device if one.key == 2000).backing.changeId
        for change_id, written in self.since.items():
            found: set[int] = set()
            at = 0
            while at < SIZE:
                answer = vm.QueryChangedDiskAreas(snapshot, 2000, at, change_id)
                for one in answer.changedArea:
                    found.update(range(one.start // BLOCK, -(-(one.start + one.length) // BLOCK)))
                at += answer.length
            assert written <= found, f"since {change_id}"
            self.compared += 1
        self.since = dict(list(self.since.items())[-3:])
        self.since[own] = set()

    def named(self, tree: Any, name: str) -> Any:
        for one in tree:
            found = one.snapshot if one.name == name else self.named(one.childSnapshotList, name)
            if found is not None:
                return found
        return None

    def check(self) -> None:
        """Everything holds what it must."""
        state = self.ask(lambda: self.lab.machine(self.name))
        assert {one["name"] for one in state["snapshots"]} == set(self.frozen)
        assert self.ask(lambda: self.lab.content(self.name, 2000)) == self.live
        for name, content in self.frozen.items():
            assert self.ask(lambda name=name: self.lab.frozen(self.name, 2000, name)) == content, name


# pyvmomi leaves the sockets of a server that died to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_kills_at_any_moment_change_no_byte(tmp_path: Path) -> None:
    names = ("one", "two")
    machines = [{"name": name, "changeTracking": True, "disks": [{"sizeBytes": SIZE}]} for name in names]
    failures: list[BaseException] = []
    over = threading.Event()
    with Lab.start(tmp_path, machines=machines, taskMillis=2) as lab:
        estates = [Estate(lab, name, random.Random(name)) for name in names]

        def live(estate: Estate) -> None:
            try:
                while not over.is_set():
                    estate.step()
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

        threads = [threading.Thread(target=live, args=(one,)) for one in estates]
        for thread in threads:
            thread.start()
        rng = random.Random(1)
        for _ in range(8):
            time.sleep(rng.uniform(0.1, 0.5))
            lab.crash()
            lab.restart()
        over.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert all(one.compared > 3 for one in estates), [one.compared for one in estates]
        assert all(one.rounds > 3 for one in estates), [one.rounds for one in estates]
        for one in estates:
            one.check()
        with clients.session(lab) as instance:
            for one in estates:
                clients.done(clients.find(instance, vim.VirtualMachine, one.name).RemoveAllSnapshots_Task())
                one.frozen = {}
                one.check()
