"""A QEMU whose processor's help gives up under the guest, once: what a broken nested virtualisation looks like.

Started in QEMU's place with its command line. It answers on the control line as QEMU does, says that KVM is in use, and
stops with an internal error. Where its command line asks for no KVM it becomes the QEMU that its first argument names.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys


def main() -> None:
    """Serve one machine, or become QEMU."""
    real, first, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
    try:
        os.close(os.open(first, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os.execv(real, [real, *arguments])
    (descriptor,) = re.findall(r"id=control,fd=(\d+)", " ".join(arguments))
    with socket.socket(fileno=int(descriptor)) as line, line.makefile("rw") as control:

        def say(message: object) -> None:
            control.write(json.dumps(message) + "\n")
            control.flush()

        say({"QMP": {"version": {}, "capabilities": []}})
        answers = {"query-kvm": {"enabled": True, "present": True}, "query-status": {"status": "internal-error"}}
        for request in control:
            asked = json.loads(request)
            say({"return": answers.get(asked["execute"], {}), "id": asked.get("id")})
            if asked["execute"] == "cont":
                say({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}})


main()
