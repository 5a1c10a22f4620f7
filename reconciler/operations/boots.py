"""Starting a machine from its disks, and saying whether it came up: the proof that an image is worth its space.

Called by the drills. It decides nothing about images: it gets drives and an order, and gives a verdict with what there
was to see. The machine has passed once its serial port shows the pattern or its guest agent answers. It has failed once
it stops, resets, shows a kernel's last words, or the time is over. What hinders the trial itself is an error instead:
nothing was learned about the image then.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Sequence
from typing import Final

from reconciler.base import errors, meters
from reconciler.operations import bootorders, emulators, firmwares, qmp

Drive = bootorders.Drive
BootOrder = bootorders.BootOrder

#: Bytes of the console that are kept: the last ones.
KEPT: Final = 64 << 10
#: Bytes before what is new that a pattern is searched in again: the longest match that is found in any case.
_OVERLAP: Final = 4 << 10
#: Seconds between looks at the meter and the clock, and between questions to the agent.
_TICK: Final = 0.1
_ASKING: Final = 1.0
#: Seconds in which what a port sends byte by byte is gathered, so that it is searched once.
_GATHERED: Final = 0.02
#: Characters of the console that a message quotes.
_QUOTED: Final = 120
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,512}(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")
_NOTHING: Final = re.compile(rf"No bootable device|BdsDxe: No bootable option|^{firmwares.NOTHING}$", re.MULTILINE)
#: What a shutdown says of itself.
_REASONS: Final = {
    "guest-shutdown": "the guest switched itself off",
    "guest-reset": "the guest reset itself, as after a crash it could not report",
    "guest-panic": "the guest's kernel reported a panic",
}


class _GaveUp(errors.EmulatorFailed):
    """What runs the guest failed, which says nothing of the guest."""

    def __init__(self, accelerator: str) -> None:
        super().__init__(
            f"QEMU ({accelerator}) could not go on with the machine", hint="see what the kernel's log says of KVM"
        )
        self.accelerator = accelerator


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BootResult:
    """How the machine fared."""

    passed: bool
    #: From the start of the machine to the verdict.
    seconds: float
    #: ``kvm`` or ``tcg``.
    accelerator: str
    #: The last 64 KiB of its serial port as plain text: no control characters but newlines and tabs.
    console: str
    #: A PNG of its screen at the verdict, of 2 MiB at most; None where it had none.
    screenshot: bytes | None
    #: What made it pass or fail, in a sentence without a full stop.
    message: str
    #: Reads and writes of its disks that failed: with one, a machine that did not come up says little of its image.
    disk_errors: int = 0


def boot(drives: Sequence[Drive], order: BootOrder, meter: meters.Meter | None = None) -> BootResult:
    """Start a machine from ``drives`` and wait for the verdict; nothing of it is left.

    Where the processor's help was taken by itself and gives up, the machine is started anew without it.
    Raises ``EmulatorFailed`` where QEMU or the firmware is not installed, does not start (a drive that cannot be opened
    among it), sees no disk or dies, ``UsageError`` for a pattern that is none, and ``Cancelled``.
    """
    meter = meter or meters.Meter()
    up, down = _compiled(order.pattern), _compiled(order.failure)
    try:
        return _tried(drives, order, meter, up, down)
    except _GaveUp as error:
        if order.accelerator != "auto" or error.accelerator != "kvm":
            raise
    return _tried(drives, dataclasses.replace(order, accelerator="tcg"), meter, up, down)


def _tried(
    drives: Sequence[Drive], order: BootOrder, meter: meters.Meter, up: re.Pattern[str], down: re.Pattern[str]
) -> BootResult:
    with emulators.Emulator(drives, order, meter) as machine:
        trial = _Trial(machine, order, up, down)
        verdict = None
        while verdict is None:
            meter.check()
            verdict = trial.look()
        passed, message = verdict
        seconds = trial.elapsed
        return BootResult(
            passed=passed,
            seconds=seconds,
            accelerator=machine.accelerator,
            console=trial.console.text(),
            screenshot=machine.screenshot(),
            message=message,
            disk_errors=trial.disk_errors,
        )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise errors.UsageError(f"{pattern!r} is no pattern for a console: {error}") from error


class Console:
    """What came out of a serial port, bounded, and what was found in it."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._fresh = 0

    def add(self, data: bytes) -> None:
        """Take bytes; the oldest beyond ``KEPT`` are let go."""
        self._kept += data
        self._fresh = min(self._fresh + len(data), KEPT)
        if len(self._kept) > KEPT:
            del self._kept[: len(self._kept) - KEPT]

    def fresh(self) -> str:
        """The text since the last call and a little before it; empty where nothing came."""
        if not self._fresh:
            return ""
        window = bytes(self._kept[-(self._fresh + _OVERLAP) :])
        self._fresh = 0
        return plain(window)

    def text(self) -> str:
        """All that was kept."""
        return plain(bytes(self._kept))


def plain(data: bytes) -> str:
    """What a terminal was sent, as text that does nothing to one: no escapes, no control characters."""
    text = _ESCAPES.sub("", data.decode(errors="replace")).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(one for one in text if one in "\n\t" or one.isprintable())


class _Trial:
    """One machine between its start and the verdict."""

    def __init__(
        self, machine: emulators.Emulator, order: BootOrder, up: re.Pattern[str], down: re.Pattern[str]
    ) -> None:
        self._machine = machine
        self._order = order
        self._up = up
        self._down = down
        self._began = time.monotonic()
        self._asked = 0.0
        self._pressed = False
        self._firmware = Console()
        self._answers = bytearray()
        self.console = Console()
        self.disk_errors = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def look(self) -> tuple[bool, str] | None:
        """Wait a moment and take what came; the verdict with its reason, None while there is none."""
        self._ask()
        left = self._order.seconds - self.elapsed
        if qmp.wait(self._machine.sources, max(0.0, min(_TICK, left))):
            time.sleep(_GATHERED)
        self.console.add(self._machine.serial.read())
        self._firmware.add(self._machine.firmware.read())
        heard = self._heard(self._machine.agent.read())
        return self._seen() or (heard and self._agent()) or self._happened() or self._late(left)

    def _ask(self) -> None:
        """The agent answers when it is there; until then nobody takes the question."""
        if self._order.judge != "serial" and self.elapsed >= self._asked:
            self._asked = self.elapsed + _ASKING
            self._machine.agent.write(json.dumps({"execute": "guest-ping"}).encode() + b"\n")

    def _heard(self, data: bytes) -> bool:
        self._answers = (self._answers + data)[-KEPT:]
        return b'"return"' in self._answers

    def _agent(self) -> tuple[bool, str] | None:
        if self._order.judge == "serial":
            return None
        return True, f"the guest agent answered after {self.elapsed:.1f} s"

    def _seen(self) -> tuple[bool, str] | None:
        text = self.console.fresh()
        if firmwares.WAITING in text and not self._pressed:
            self._pressed = True
            self._machine.press(firmwares.KEY)
        found = self._up.search(text) if self._order.judge != "agent" else None
        if found is not None:
            return True, f"the console showed {_line(text, found)!r} after {self.elapsed:.1f} s"
        if _NOTHING.search(text):
            return False, self._nothing()
        failed = self._down.search(text) if self._order.failure else None
        if failed is not None:
            return False, f"the console showed {_line(text, failed)!r}"
        return None

    def _happened(self) -> tuple[bool, str] | None:
        message = None
        for event in self._machine.events():
            if event.name == "SHUTDOWN":
                message = _REASONS.get(str(event.data.get("reason")), "the machine was switched off")
            elif event.name == "GUEST_PANICKED":
                message = _REASONS["guest-panic"]
            elif event.name == "BLOCK_IO_ERROR":
                self.disk_errors += 1
            elif event.name == "STOP" and message is None:
                message = self._stopped()
        if message is None:
            return None
        # Its last words may still be on the way.
        while data := self._machine.serial.read():
            self.console.add(data)
        while data := self._machine.firmware.read():
            self._firmware.add(data)
        if (seen := self._seen()) is not None:
            return seen
        if _NOTHING.search(self._firmware.text()):
            message = self._nothing()
        return False, message + self._reads()

    def _stopped(self) -> str:
        """Raises ``EmulatorFailed`` where it was not the guest."""
        state = self._machine.state()
        if state == "internal-error":
            raise _GaveUp(self._machine.accelerator)
        return f"the machine stopped: {state}"

    def _nothing(self) -> str:
        """Raises ``EmulatorFailed`` where it could not look."""
        if firmwares.may_miss(self._order.firmware, self._order.bus):
            raise errors.EmulatorFailed(
                f"the firmware (uefi) found no disk that it can start, and may have no driver for {self._order.bus}",
                hint="leave out drills.boot.bus, or choose ide or sata",
            )
        return f"the firmware ({self._order.firmware}) found no disk that it can start"

    def _late(self, left: float) -> tuple[bool, str] | None:
        if left > 0:
            return None
        shown = self.console.text().strip().rpartition("\n")[2][-_QUOTED:]
        last = f"; its console's last line: {shown!r}" if shown else "; its console showed nothing"
        awaited = {"serial": "the console did not show what was awaited", "agent": "the guest agent did not answer"}
        what = awaited.get(self._order.judge, "neither the console nor the guest agent said that it is up")
        slow = "; it ran without KVM, many times slower" if self._machine.accelerator == "tcg" else ""
        return False, f"{what} within {self._order.seconds:.0f} s{last}{slow}{self._reads()}"

    def _reads(self) -> str:
        return f"; {self.disk_errors} reads or writes of its disks failed" if self.disk_errors else ""


def _line(text: str, found: re.Match[str]) -> str:
    """The line of a match."""
    start = text.rfind("\n", 0, found.start()) + 1
    end = text.find("\n", found.end())
    return text[start : end if end >= 0 else len(text)].strip()[:_QUOTED]
