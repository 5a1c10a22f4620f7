"""The child: takes the options from its command line, gives up what it does not need, and reads volume after volume.

A volume that cannot be read costs that volume alone: what it handed over is void, a warning says why, and the next one
follows. Whatever goes wrong beyond that ends the child, and the other end of the socket draws the conclusion. One that
serves a browser opens the volumes and then answers until it is ended.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import socket
import sys
from collections.abc import Callable

from reconciler.guests import scans, wires
from reconciler.guests.parsers import filesystems, outputs, serving, stretches, volumes

#: Bytes a child may write to its standard error, the one file it holds open for writing.
_STDERR = 64 << 10
#: Seconds of processor time between the signal that says why and the one that cannot be ignored.
_SPARE = 5
#: The user and group without rights on every Linux.
_NOBODY = 65_534


def _confine(limits: scans.Limits) -> None:
    for what, most, spare in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, limits.memory, 0),
        (resource.RLIMIT_CPU, limits.processor, _SPARE),
        (resource.RLIMIT_FSIZE, _STDERR, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        _, hard = resource.getrlimit(what)
        ceiling = most + spare if hard == resource.RLIM_INFINITY else min(most + spare, hard)
        resource.setrlimit(what, (min(most, ceiling), ceiling))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def _read(output: outputs.Output, stretch: stretches.Stretch) -> outputs.Facts | None:
    kind = filesystems.recognise(stretch)
    if kind is None:
        return None
    facts = filesystems.parse(kind, stretch, output)
    output.flush()
    return facts


def _volume(line: stretches.Line, found: volumes.Found, read: Callable[[], outputs.Facts | None]) -> bool:
    """Read one volume. True if what it handed over stands."""
    volume: dict[str, object] = {
        "offset": found.stretch.pieces[0][0],
        "length": found.stretch.size,
        "scheme": found.scheme,
        "filesystem": None,
        "label": found.name,
        "clean": False,
        "reason": "",
        "cluster": 0,
    }
    line.send(wires.pack_json(wires.BEGIN, volume))
    stands = True
    try:
        facts = read()
        if facts is None:
            volume["reason"] = filesystems.unread(found.stretch)
    except Exception as error:  # noqa: BLE001  whatever a hostile volume provokes costs that volume alone
        stands = False
        facts = None
        line.send(wires.pack(wires.ABANDON))
        message = f"volume at byte {volume['offset']}: {type(error).__name__}: {error}"
        line.send(wires.pack_json(wires.WARNING, ["VolumeUnreadable", message[:1000]]))
        volume["reason"] = "its file system cannot be read"
    if facts is None and stands and (name := filesystems.foreign(found.stretch)):
        # What is unknown may be nothing at all; this is somebody's files.
        message = f"volume at byte {volume['offset']} holds {name}, which is not read"
        line.send(wires.pack_json(wires.WARNING, ["VolumeNotRead", message]))
    if facts is not None:
        volume.update(filesystem=facts.filesystem, clean=facts.clean, reason=facts.reason, cluster=facts.cluster)
        volume["label"] = facts.label or found.name
        if found.shared and not facts.reason:
            volume["reason"] = "it overlaps another volume"
    line.send(wires.pack_json(wires.COMMIT, volume))
    return stands


def _look(line: stretches.Line, found: list[volumes.Found], options: dict[str, bool], limits: scans.Limits) -> None:
    """Hand over what was asked for of all volumes."""
    budget = outputs.Budget(limits=limits)
    first = 0
    for volume in found:
        output = outputs.Output(
            line,
            volume.stretch,
            budget,
            first_file=first,
            want_runs=options["runs"],
            want_space=options["space"] and not volume.shared,
            want_files=options["files"],
            quiesced=options["quiesced"],
        )
        if _volume(line, volume, functools.partial(_read, output, volume.stretch)):
            first = output.next_file


def main(arguments: list[str]) -> int:
    """``arguments``: the number of the socket's descriptor, and the options as JSON."""
    options = json.loads(arguments[1])
    limits = scans.Limits(**options["limits"])
    _confine(limits)
    line = stretches.Line(socket.socket(fileno=int(arguments[0])))
    disk = stretches.Disk(line, options["size"], options["within"])
    found, warnings = volumes.find(disk, options["sector"])
    for code, message in warnings:
        line.send(wires.pack_json(wires.WARNING, [code, message]))
    if not options["serve"]:
        _look(line, found, options, limits)
        line.send(wires.pack(wires.END))
        return 0
    server = serving.Server(line, limits)
    for volume in found:
        _volume(line, volume, functools.partial(server.open, volume))
    line.send(wires.pack(wires.END))
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
