#!/usr/bin/env python3
"""The eight guests of the sample estate as virtual machines: made for ``hack/vsphere-lab up``, and lived in for a day.

``make FOLDER`` builds the guests of ``hack/guests.py`` and writes the peer's configuration beside them: three disks
each, Windows-like and Linux-like file systems, machines on two hosts and two datastores, one of them powered off, and a
template that no policy should take. ``day FOLDER --seed N`` makes a day of change in every guest and writes through the
running peer just the blocks that differ, as the guests would. ``digests FOLDER`` prints what every disk holds now.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import guests
import vsphere_labs

COUNT = 8
#: Labels in the order of the files of a guest.
DISKS = (("system.img", "Hard disk 1"), ("data.qcow2", "Hard disk 2"), ("archive.vmdk", "Hard disk 3"))


def _raw(disk: Path, target: Path) -> None:
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(disk), str(target)], check=True)


def make(folder: Path, size: int, seed: int) -> None:
    """Guests, their disks as raw files, and ``config.json``."""
    made = folder / "guests"
    names = [f"oblVM{number}" for number in range(1, COUNT + 1)]
    guests.build(made, machines=names, seed=seed, size=size)
    machines = []
    for number, name in enumerate(names, 1):
        disks = []
        for place, (file, label) in enumerate(DISKS):
            raw = made / name / f".{Path(file).stem}.raw"
            _raw(made / name / file, raw)
            disks.append(
                {"label": label, "controller": f"scsi0:{place}", "from": str(raw), "sizeBytes": raw.stat().st_size}
            )
        machines.append(
            {
                "name": name,
                "folder": "gold",
                "host": f"esx{1 + number % 2}",
                "datastore": f"ds{1 + number % 2}",
                "powerState": "poweredOff" if number == COUNT else "poweredOn",
                "firmware": "efi" if number % 2 else "bios",
                "tags": ["backup/gold"],
                "disks": disks,
            }
        )
    template = {"name": "oblTemplate", "folder": "templates", "template": True, "powerState": "poweredOff"}
    datacenter = {
        "name": "DC0",
        "clusters": [{"name": "C0", "hosts": ["esx1", "esx2"]}],
        "datastores": [{"name": "ds1", "type": "VMFS"}, {"name": "ds2", "type": "NFS"}],
        "folders": ["gold", "templates"],
    }
    config = {"username": "backup@vsphere.local", "password": "lab password: 1", "datacenters": [datacenter]}
    (folder / "config.json").write_text(json.dumps({**config, "machines": [*machines, template]}, indent=1))


def attach(folder: Path) -> vsphere_labs.Lab:
    """The peer that runs on ``folder``."""
    config = json.loads((folder / "config.json").read_text())
    port = int((folder / "port").read_text())
    return vsphere_labs.Lab(folder=folder, username=config["username"], password=config["password"], port=port)


def day(folder: Path, seed: int) -> int:
    """A day of change in every guest; the bytes written."""
    lab, made = attach(folder), folder / "guests"
    written = 0
    for machine in sorted(path for path in made.iterdir() if path.is_dir()):
        guests.change(machine, seed)
        for file, label in DISKS:
            before = machine / f".{Path(file).stem}.raw"
            after = before.with_suffix(".new")
            _raw(machine / file, after)
            for offset, data in guests.differences(before, after):
                lab.write(machine.name, label, offset, data)
                written += len(data)
            after.replace(before)
    return written


def digests(folder: Path) -> list[str]:
    """``SHA-256 machine/disk`` of every disk as its guest sees it."""
    lab = attach(folder)
    wanted = [(one["name"], disk["label"]) for one in lab.state()["machines"] for disk in one["disks"]]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda one: hashlib.sha256(lab.content(*one)).hexdigest(), wanted)
        return [f"{digest} {vm}/{disk}" for digest, (vm, disk) in zip(found, wanted, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "day", "digests"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32 << 20, help="bytes per disk")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args(arguments)
    if chosen.what == "make":
        make(chosen.folder.absolute(), chosen.size, chosen.seed)
    elif chosen.what == "day":
        print(f"{day(chosen.folder.absolute(), chosen.seed) >> 10} KiB written by the guests")
    else:
        print("\n".join(digests(chosen.folder.absolute())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
