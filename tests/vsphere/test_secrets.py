"""The password of a vCenter is nowhere: in no log, plan, catalog, unit, error, and in no process list."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import virtual_estates
from virtual_estates import VirtualEstate

PASSWORD = "s3cret-Wort/&<>'\" 7319"
#: The password as it might be written down, and what begins a session's own secret.
SIGNS = ("s3cret-Wort", "czNjcmV0LVdvcn", "vmware_soap_session=", "vmware-api-session-id:")


class _Processes:
    """What the process list shows while something runs, of everybody but this process."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()
        self.environments: dict[str, bytes] = {}
        self._stop = threading.Event()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    line = (process / "cmdline").read_bytes()
                    self.lines.add(line)
                    if b"nbdkit" in line or b"qemu" in line:
                        self.environments[process.name] = (process / "environ").read_bytes()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """As long as this lasts."""
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def _require_clean(text: str | bytes, where: str) -> None:
    data = text.encode() if isinstance(text, str) else text
    for sign in SIGNS:
        assert sign.encode() not in data, f"{sign} in {where}"


def test_the_password_is_nowhere(tmp_path: Path) -> None:
    machines = virtual_estates.machines(2, size=32 * virtual_estates.MIB)
    with virtual_estates.vsphere_labs.Lab.start(tmp_path / "lab", machines=machines, password=PASSWORD) as lab:
        estate = VirtualEstate(tmp_path / "root", lab).build(transports=["nbdkit-vddk"])
        # Slow enough to be looked at.
        lab.mode(taskMillis=300)
        processes = _Processes()
        with processes.watched():
            said = estate.apply()
        estate.build(transports=["datastore", "export"])
        estate.pass_day()
        said += estate.apply()
        assert any(b"vddk" in line for line in processes.lines), "the reader was never seen"
        assert processes.environments
        # Other tests run on this machine, with secrets of their own.
        assert not any(SIGNS[0].encode() in line for line in processes.lines)
        for line in processes.lines:
            if str(tmp_path).encode() in line:
                _require_clean(line, f"a command line: {line[:60]!r}")
        for data in processes.environments.values():
            assert SIGNS[0].encode() not in data, "the environment of a reader"
        job = estate.items("jobs")[0]["id"]
        for words in (
            ("plan", "."), ("plan", ".", "-o", "json"), ("logs", job), ("get", "audit"), ("describe", "vcenter", "lab"),
            ("validate", "--live", "."), ("explain", "client", "vm1"), ("describe", "image", estate.items("images")[0]["id"]),
        ):  # fmt: skip
            done = estate.command.run(*words, code=None)
            said += done.stdout + done.stderr
        wrong = estate.command.using(HOLDFAST_LAB_PASSWORD=f"{PASSWORD} not").run("validate", "--live", ".", code=1)
        said += wrong.stdout + wrong.stderr
        assert "refuse" in said
        _require_clean(said, "what commands said")
        for path in estate.folder.rglob("*"):
            if path.is_file():
                _require_clean(path.read_bytes(), str(path))
