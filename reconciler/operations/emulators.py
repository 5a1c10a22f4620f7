"""One machine of QEMU's: started without a network, watched through sockets that only we hold, gone when we are.

``boots`` asks for it and judges it. The guest came out of an image, which may hold anything, so QEMU is given as little
as it can do with: no network, no monitor but ours, a seccomp filter, no programs to start, and no rights of root once
its files are open. Console, agent and control are connections made before it starts: no path of ours can be met by
anybody else or outlives a crash. A guest that shuts down or resets is held, so that its screen can still be read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from reconciler.base import errors, guards, meters
from reconciler.operations import bootorders, firmwares, qmp, screenshots

PROGRAM: Final = "qemu-system-x86_64"
_SHELL: Final = guards.GATE + 'exec "$@" </dev/null'
#: Seconds that QEMU may take to start, all of its disks opened, and to answer a question.
PATIENCE: Final = 60.0
#: Bytes of a dumped screen: the most that the machine's graphics memory can show.
_SCREEN: Final = 64 << 20
_TAIL: Final = 2000
#: Bytes that wait at most until we take them from the machine's serial port.
_ROOM: Final = 1 << 20
#: Number of the first set of descriptors, by which QEMU opens what it inherits.
_SET: Final = 1
_OPTION: Final = re.compile(r"-drive if=none,id=disk(\d+),.*\}: ")
_SANDBOX: Final = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
#: Disks that one controller of a bus takes: its device, its disks' device, and how many.
_CONTROLLERS: Final[dict[bootorders.Bus, tuple[str, str, int]]] = {
    "scsi": ("virtio-scsi-pci", "scsi-hd", 64),
    "pvscsi": ("pvscsi", "scsi-hd", 60),
    "lsisas": ("mptsas1068", "scsi-hd", 8),
    "sata": ("ich9-ahci", "ide-hd", 6),
}
#: What takes the disks beyond those that a bus without controllers has room for.
_BEYOND: Final[dict[bootorders.Bus, tuple[int, bootorders.Bus]]] = {
    "ide": (4, "sata"),
    "virtio": (16, "scsi"),
    "nvme": (16, "scsi"),
}


def kvm_usable() -> bool:
    """Whether this machine's processor runs guests, and we may ask it to.

    A device alone is not enough: where a kernel offers one without the processor's help, an ordinary guest crawls.
    """
    flags = re.search(r"^flags\s*:.*\b(?:vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


class Emulator:
    """A running machine. A context manager; leaving it ends the machine. Used by one thread."""

    def __init__(
        self, drives: Sequence[bootorders.Drive], order: bootorders.BootOrder, meter: meters.Meter | None = None
    ) -> None:
        """Start it. Raises ``EmulatorFailed`` with QEMU's own words, or ``Cancelled``, leaving nothing behind."""
        program = _installed()
        self._names = [drive.name for drive in drives]
        with contextlib.ExitStack() as failing:
            self._screen = os.memfd_create("holdfast-screen")
            failing.callback(os.close, self._screen)
            control = _Line(failing)
            # Whatever a guest makes QEMU complain about, no more than the pipe's room of it is kept.
            self._said = _Pipe(failing)
            #: What the guest writes to its first serial port.
            self.serial = _Pipe(failing)
            #: What the firmware says of itself.
            self.firmware = _Pipe(failing)
            #: To the guest agent; without one nobody answers.
            self.agent = _Line(failing)
            with contextlib.ExitStack() as theirs:
                lent = {name: line.lend(theirs) for name, line in (("control", control), ("agent", self.agent))}
                lent |= {
                    name: pipe.lend(theirs) for name, pipe in (("serial", self.serial), ("firmware", self.firmware))
                }
                # QEMU takes a descriptor for what it is open for, and no more than that.
                lent["screen"] = os.open(f"/proc/self/fd/{self._screen}", os.O_WRONLY)
                theirs.callback(os.close, lent["screen"])
                options = [*_machine(order), *_connections(lent), *_disks(drives, order), *_rights()]
                if order.firmware == "uefi":
                    script = theirs.enter_context(tempfile.TemporaryFile())
                    script.write(firmwares.script_disk())
                    script.flush()
                    lent["script"] = os.open(f"/proc/self/fd/{script.fileno()}", os.O_RDONLY)
                    theirs.callback(os.close, lent["script"])
                    options += _uefi(lent["script"], len(drives) + 1)
                self._process = _started([program, *options], tuple(lent.values()), self._said.lend(theirs))
            failing.callback(self._process.wait)
            failing.callback(self._process.kill)
            try:
                failing.callback(guards.admit(self._process).communicate)
            except OSError as error:
                raise errors.EmulatorFailed(f"nothing can look after {program}: {error.strerror or error}") from error
            # Under want of memory this one goes first, not the backup beside it.
            with contextlib.suppress(OSError):
                Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("500")
            self._qmp = qmp.Client(control.ours, (meter or meters.Meter()).check)
            try:
                self._qmp.greet(PATIENCE)
                kvm = self._qmp.execute("query-kvm", PATIENCE)
                self._qmp.execute("cont", PATIENCE)
            except qmp.Refused as error:
                raise self._failure(str(error)) from error
            #: ``kvm`` or ``tcg``: what runs the guest.
            self.accelerator = "kvm" if kvm.get("enabled") else "tcg"
            self._ending = failing.pop_all()

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._process.pid

    @property
    def sources(self) -> list[qmp.Source]:
        """What to ``qmp.wait`` at: each says something when the machine does."""
        return [one for one in (self.serial, self.firmware, self.agent) if not one.ended] + [self._qmp]

    def events(self) -> Iterator[qmp.Event]:
        """What has happened to the machine since the last call. Raises ``EmulatorFailed`` where QEMU is gone."""
        yield from self._qmp.events()
        if self._qmp.ended:
            raise self._failure("QEMU ended under its guest")

    def state(self) -> str:
        """How the machine runs, as QEMU calls it: ``running``, ``shutdown``, ``internal-error``, ..."""
        try:
            return str(self._qmp.execute("query-status", PATIENCE).get("status"))
        except qmp.Refused as error:
            raise self._failure(str(error)) from error

    def press(self, key: str) -> None:
        """Press a key of its keyboard, as QEMU names it. Raises ``EmulatorFailed``."""
        try:
            self._qmp.execute("send-key", PATIENCE, keys=[{"type": "qcode", "data": key}])
        except qmp.Refused as error:
            raise self._failure(str(error)) from error

    def screenshot(self) -> bytes | None:
        """The machine's screen as a PNG; None where it has none to show."""
        try:
            self._qmp.execute("screendump", PATIENCE, filename=f"/dev/fdset/{_SET}")
        except qmp.Refused:
            return None
        size = min(os.fstat(self._screen).st_size, _SCREEN)
        return screenshots.png(os.pread(self._screen, size, 0))

    def close(self) -> None:
        """End the machine, as pulling its plug does. Idempotent."""
        self._ending.close()

    def __enter__(self) -> Emulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failure(self, otherwise: str) -> errors.EmulatorFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        text = b"".join(iter(self._said.read, b""))[-_TAIL:].decode(errors="replace")
        said = [_worded(line, self._names) for line in text.splitlines() if "warning:" not in line]
        code = self._process.returncode
        ended = f"QEMU was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else otherwise
        return errors.EmulatorFailed("; ".join(filter(None, said)) or ended)


def _started(command: Sequence[str], lent: Sequence[int], said: int) -> subprocess.Popen[bytes]:
    """QEMU with the descriptors it is lent; ``said``: where its own words go."""
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            pass_fds=lent,
            env={"LC_ALL": "C", "PATH": os.defpath, "TMPDIR": tempfile.gettempdir()},
            start_new_session=True,
        )
    except OSError as error:
        raise errors.EmulatorFailed(f"{command[0]} cannot be started: {error.strerror or error}") from error


def _worded(line: str, names: Sequence[str]) -> str:
    """A line of QEMU's with a disk's name where it repeats the option that the disk was given by."""
    found = _OPTION.search(line)
    if found is None:
        return line.removeprefix(f"{PROGRAM}: ").strip()
    return f"{names[int(found[1])]}: {line[found.end() :].strip()}"


class _Line:
    """A connection to the machine in both directions: our end, which never waits, and the end that QEMU gets."""

    def __init__(self, failing: contextlib.ExitStack) -> None:
        self.ours, self._theirs = socket.socketpair()
        failing.callback(self.ours.close)
        failing.callback(self._theirs.close)
        self.ours.setblocking(False)
        self.ended = False

    def lend(self, theirs: contextlib.ExitStack) -> int:
        """The descriptor of QEMU's end, closed here with ``theirs``."""
        return theirs.enter_context(self._theirs).fileno()

    def fileno(self) -> int:
        """For ``qmp.wait``."""
        return self.ours.fileno()

    def read(self) -> bytes:
        """What is there now, up to 64 KiB."""
        data = _read(self.ours.fileno())
        self.ended = data == b""
        return data or b""

    def write(self, data: bytes) -> None:
        """Send what fits; the rest is dropped."""
        with contextlib.suppress(OSError):
            self.ours.send(data)


class _Pipe:
    """What the machine writes byte by byte. A socket has room for some hundred pieces, of whatever size; then a guest
    that does not wait for its serial port loses letters.
    """

    def __init__(self, failing: contextlib.ExitStack) -> None:
        self._ours, self._theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        failing.callback(os.close, self._ours)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._ours, fcntl.F_SETPIPE_SZ, _ROOM)
        self.ended = False

    def lend(self, theirs: contextlib.ExitStack) -> int:
        """The descriptor of QEMU's end, closed here with ``theirs``."""
        theirs.callback(os.close, self._theirs)
        return self._theirs

    def fileno(self) -> int:
        """For ``qmp.wait``."""
        return self._ours

    def read(self) -> bytes:
        """What is there now, up to 64 KiB."""
        data = _read(self._ours)
        self.ended = data == b""
        return data or b""


def _read(number: int) -> bytes | None:
    """What is there now, empty at the end; None while there is nothing."""
    try:
        return os.read(number, 1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _installed() -> str:
    program = shutil.which(PROGRAM, path=os.environ.get("PATH", "") + ":/usr/bin:/usr/libexec")
    if program is None:
        raise errors.EmulatorFailed(
            f"{PROGRAM} is not installed, which starts machines", hint="install the package qemu-system-x86"
        )
    return program


def _machine(order: bootorders.BootOrder) -> Iterator[str]:
    """Everything but its disks and connections."""
    yield from ("-name", "holdfast", "-nodefaults", "-no-user-config", "-S", "-display", "none", "-nic", "none")
    yield from ("-machine", "pc,usb=off,vmport=off,dump-guest-core=off", "-cpu", "max", "-vga", "std")
    yield from ("-m", str(order.memory), "-smp", str(order.processors), "-rtc", "base=utc", "-sandbox", _SANDBOX)
    automatic = ["kvm", "tcg"] if kvm_usable() else ["tcg"]
    for accelerator in automatic if order.accelerator == "auto" else [order.accelerator]:
        yield from ("-accel", accelerator)
    # A machine that resets, also by a triple fault, or that finds nothing to start, is held as one that is off.
    yield from ("-boot", "strict=on,menu=off,reboot-timeout=0", "-action", "reboot=shutdown,shutdown=pause,panic=pause")
    yield from ("-device", "pvpanic", "-object", "rng-builtin,id=chance", "-device", "virtio-rng-pci,rng=chance")
    for option, value in (("-kernel", order.kernel), ("-initrd", order.initrd), ("-append", order.append)):
        if value:
            yield from (option, value)


def _uefi(script: int, place: int) -> Iterator[str]:
    code, variables = firmwares.installed()
    yield from ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}")
    yield from ("-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={variables}")
    yield from ("-add-fd", f"fd={script},set={_SET + 3}")
    yield from ("-drive", f"if=none,id=script,format=raw,readonly=on,cache=unsafe,file=/dev/fdset/{_SET + 3}")
    # Without a place in the order the firmware would not look at it at all.
    yield from ("-device", f"virtio-blk-pci,drive=script,bootindex={place}")


def _connections(lent: Mapping[str, int]) -> Iterator[str]:
    for name in ("control", "agent"):
        yield from ("-chardev", f"socket,id={name},fd={lent[name]}")
    for number, name in enumerate(("screen", "serial", "firmware"), _SET):
        yield from ("-add-fd", f"fd={lent[name]},set={number}")
        if name != "screen":
            yield from ("-chardev", f"file,id={name},append=on,path=/dev/fdset/{number}")
    yield from ("-mon", "chardev=control,mode=control", "-serial", "chardev:serial")
    yield from ("-device", "isa-debugcon,iobase=0x402,chardev=firmware", "-device", "virtio-serial-pci")
    yield from ("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0")


def _rights() -> Iterator[str]:
    if os.geteuid() == 0:
        yield from ("-runas", "nobody")


def _disks(drives: Sequence[bootorders.Drive], order: bootorders.BootOrder) -> Iterator[str]:
    made: set[str] = set()
    for number, drive in enumerate(drives):
        yield from ("-drive", _backend(drive, number))
        room, beyond = _BEYOND.get(order.bus, (number + 1, order.bus))
        bus, place = (order.bus, number) if number < room else (beyond, number - room)
        shared = f"drive=disk{number},bootindex={number + 1}"
        if drive.sector != 512:
            shared += f",logical_block_size={drive.sector},physical_block_size={drive.sector}"
        if bus in _CONTROLLERS:
            controller, device, most = _CONTROLLERS[bus]
            name = f"{bus}{place // most}"
            if name not in made:
                made.add(name)
                yield from ("-device", f"{controller},id={name}")
            unit = place % most
            where = f"bus={name}.{unit}" if bus == "sata" else f"bus={name}.0,scsi-id={unit}"
            yield from ("-device", f"{device},{where},{shared}")
        elif bus == "ide":
            yield from ("-device", f"ide-hd,bus=ide.{place // 2},unit={place % 2},{shared}")
        elif bus == "nvme":
            yield from ("-device", f"nvme,serial=holdfast{number},{shared}")
        else:
            yield from ("-device", f"virtio-blk-pci,{shared}")


def _backend(drive: bootorders.Drive, number: int) -> str:
    """The disk as QEMU's option; nothing that the guest writes has to last."""
    parts = urllib.parse.urlsplit(drive.where)
    if parts.scheme in ("nbd", "nbd+unix"):
        protocol: dict[str, Any] = {"driver": "nbd", "server": _server(drive, parts)}
        if parts.path.strip("/"):
            protocol["export"] = urllib.parse.unquote(parts.path.removeprefix("/"))
        snapshot = "off"
    else:
        # Somebody else may have it open; we write nothing, and what is read was whole when the caller named it.
        protocol = {"driver": "file", "filename": drive.where, "locking": "off"}
        snapshot = "on"
    opened = json.dumps({"driver": drive.format, "file": protocol}).replace(",", ",,")
    return f"if=none,id=disk{number},cache=unsafe,discard=unmap,snapshot={snapshot},file=json:{opened}"


def _server(drive: bootorders.Drive, parts: urllib.parse.SplitResult) -> dict[str, str]:
    if parts.scheme == "nbd":
        return {"type": "inet", "host": parts.hostname or "localhost", "port": str(parts.port or 10809)}
    path = urllib.parse.parse_qs(parts.query).get("socket", [""])[0]
    if not path:
        raise errors.EmulatorFailed(f"{drive.name}: {drive.where} names no socket")
    return {"type": "unix", "path": path}
