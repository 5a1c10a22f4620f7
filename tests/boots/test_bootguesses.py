"""What an image and the beginnings of its disks say about starting its machine; the tables are sfdisk's."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from boot_samples import label
from hypothesis import strategies as st

from reconciler.operations import bootguesses, bootorders, firmwares
from reconciler.sources.vsphere.blueprints import blueprints

ESP, MSR, BIOS = "uefi", "E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "21686148-6449-6E6F-744E-656564454649"
CODE = b"\xeb\x63\x90" + b"\x11" * 200


def head(folder: Path, table: str, *, code: bytes = b"", sector: int = 512) -> bytes:
    """The beginning of a disk that sfdisk partitioned, for other sectors fdisk, with ``code`` in front."""
    disk = folder / "disk"
    with disk.open("wb") as file:
        file.truncate(256 << 20)
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    command = ["sfdisk", "-q", disk] if sector == 512 else ["fdisk", "-b", str(sector), disk]
    subprocess.run(command, input=table, text=True, check=True, env=environment, stdout=subprocess.DEVNULL)
    with disk.open("rb") as file:
        data = file.read(bootguesses.HEAD)
    return code + data[len(code) :]


@pytest.mark.parametrize(
    ("table", "code", "firmware", "bus", "says"),
    [
        ("label: dos\nsize=64MiB, type=83, bootable\n", CODE, "bios", "virtio", "code for a BIOS"),
        ("label: dos\nsize=64MiB, type=83\n", CODE, "bios", "virtio", "code for a BIOS"),
        ("label: dos\nsize=64MiB, type=7, bootable\n", CODE, "bios", "ide", "and is of Windows"),
        ("label: dos\nsize=64MiB, type=ef\n", b"", "uefi", "virtio", "an EFI system partition"),
        (f"label: gpt\nsize=64MiB, type={ESP}\nsize=64MiB, type=linux\n", b"", "uefi", "virtio", "an EFI system partition"),
        (f"label: gpt\nsize=64MiB, type={ESP}\nsize=64MiB, type=linux\n", CODE, "uefi", "virtio", "an EFI system partition"),
        (f"label: gpt\nsize=1MiB, type={BIOS}\nsize=64MiB, type={ESP}\n", CODE, "bios", "virtio", "code for a BIOS"),
        (f'label: gpt\nsize=64MiB, type={ESP}, attrs="LegacyBIOSBootable"\n', CODE, "bios", "virtio", "code for a BIOS"),
        (f"label: gpt\nsize=64MiB, type={ESP}\nsize=16MiB, type={MSR}\n", CODE, "uefi", "sata", "and is of Windows"),
        ("label: gpt\nsize=64MiB, type=linux\n", b"", "bios", "virtio", "no disk has what a firmware starts"),
        ("label: dos\nsize=64MiB, type=83\n", b"", "bios", "virtio", "no disk has what a firmware starts"),
    ],
)  # fmt: skip
def test_partitions_decide_for_a_folder_of_disks(
    tmp_path: Path, table: str, code: bytes, firmware: str, bus: str, says: str
) -> None:
    found = bootguesses.guess(label("a.img"), {"a.img": head(tmp_path, table, code=code)})
    assert (found.order.firmware, found.order.bus) == (firmware, bus)
    assert says in found.why and found.disks == ("a.img",)


def test_sectors_of_4_kib_are_the_tables_unit(tmp_path: Path) -> None:
    data = head(tmp_path, "g\nn\n1\n\n+64M\nt\n1\nw\n", sector=4096)  # to fdisk: one partition of the first type
    assert bootguesses.guess(label("a", sector=4096), {"a": data}).order.firmware == "uefi"
    assert bootguesses.start(data, 512) == bootguesses.Start()


def test_the_first_disk_that_can_be_started_comes_first(tmp_path: Path) -> None:
    data = head(tmp_path, "label: dos\nsize=64MiB, type=83, bootable\n", code=CODE)
    wanted = bootorders.BootOrder(judge="agent", seconds=77, memory=300)
    found = bootguesses.guess(label("a", "b", "c"), {"a": bytes(512), "b": data, "c": data}, wanted)
    assert found.disks == ("b", "a", "c")
    assert (found.order.judge, found.order.seconds, found.order.memory) == ("agent", 77, 300)
    assert bootguesses.guess(label("a", "b"), {}).disks == ("a", "b")


@hypothesis.given(st.binary(max_size=1200), st.sampled_from([512, 4096]), st.data())
def test_whatever_a_disk_begins_with_is_an_answer(noise: bytes, sector: int, data: Any) -> None:
    """Also where it pretends to be a table, of any size and at any place."""
    first = bytearray(bootguesses.HEAD)
    first[450], first[510:512] = 0xEE, b"\x55\xaa"
    header = bytearray(b"EFI PART" + bytes(84))
    for offset, size in ((72, 8), (80, 4), (84, 4)):
        value = data.draw(st.one_of(st.sampled_from([0, 1, 2, 128, 256, 512]), st.integers(0, 256**size - 1)))
        header[offset : offset + size] = value.to_bytes(size, "little")
    first[sector : sector + len(header)] = header
    first[2 * sector : 2 * sector + len(noise)] = noise
    for beginning in (bytes(first), noise, bytes(first[:sector])):
        assert isinstance(bootguesses.start(beginning, sector), bootguesses.Start)


def machine(**more: Any) -> blueprints.Blueprint:
    disk = {"size": 1 << 30, "kind": "Flat", "mode": "persistent", "thin": True}
    plain = {
        "name": "web01",
        "instance_uuid": "i",
        "bios_uuid": "b",
        "guest_id": "debian11_64Guest",
        "version": "vmx-14",
        "cpus": 8,
        "memory_mib": 32768,
        "place": blueprints.Place(vcenter="vc"),
        "controllers": (
            blueprints.Controller(key=1001, type="VirtualAHCIController", bus=1),
            blueprints.Controller(key=1000, type="ParaVirtualSCSIController", bus=0),
        ),
        "disks": (
            blueprints.Disk(label="Hard disk 1", controller=1001, unit=0, slot="sata1:0", **disk),
            blueprints.Disk(label="Hard disk 2", controller=1000, unit=1, slot="scsi0:1", **disk),
            blueprints.Disk(label="Hard disk 3", controller=1000, unit=0, slot="scsi0:0", **disk),
        ),
    }
    return blueprints.Blueprint(**{**plain, **more})


NAMES = ("Hard disk 1", "Hard disk 2", "Hard disk 3")


def test_a_vcenters_machine_is_started_as_it_was_configured() -> None:
    found = bootguesses.guess(label(*NAMES, configuration=machine(firmware="efi").write()), {})
    assert found.disks == ("Hard disk 3", "Hard disk 2", "Hard disk 1")
    assert (found.order.firmware, found.order.bus) == ("uefi", "pvscsi")
    assert (found.order.memory, found.order.processors) == (bootguesses.MOST_MEMORY, bootguesses.MOST_PROCESSORS)
    assert found.why == "web01 was a machine with uefi and ParaVirtualSCSIController"
    small = bootguesses.guess(label(*NAMES, configuration=machine(memory_mib=64, cpus=1).write()), {})
    assert (small.order.firmware, small.order.memory) == ("bios", bootguesses.LEAST_MEMORY)
    assert small.order.processors == 1


@pytest.mark.parametrize("bus", sorted(firmwares.UNSEEN))
def test_a_firmware_gets_its_disks_where_it_can_read_them(bus: bootorders.Bus) -> None:
    assert (bootguesses.readable("uefi", bus), bootguesses.readable("bios", bus)) == ("ide", bus)
    assert bootguesses.readable("uefi", "nvme") == "nvme"


def test_of_a_vcenters_disks_one_that_can_be_started_comes_first(tmp_path: Path) -> None:
    data = head(tmp_path, "label: dos\nsize=64MiB, type=83, bootable\n", code=CODE)
    found = bootguesses.guess(label(*NAMES, configuration=machine().write()), {"Hard disk 1": data})
    assert found.disks == ("Hard disk 1", "Hard disk 3", "Hard disk 2") and found.order.bus == "sata"


@pytest.mark.parametrize("kind", ["VirtualLsiLogicController", "VirtualBusLogicController", "VirtualIDEController"])
def test_what_qemu_lacks_is_replaced_by_ide(kind: str) -> None:
    one = dataclasses.replace(bootguesses.guess(label("x"), {}).order, bus="ide")
    controllers = (blueprints.Controller(key=1000, type=kind, bus=0),)
    found = bootguesses.guess(label(*NAMES, configuration=machine(controllers=controllers).write()), {})
    assert found.order.bus == one.bus and found.disks[0] == "Hard disk 3"


@pytest.mark.parametrize("text", ["{}", "no json", '{"kind": "VirtualMachine", "formatVersion": 99}'])
def test_a_configuration_that_cannot_be_used_leaves_it_to_the_disks(tmp_path: Path, text: str) -> None:
    data = head(tmp_path, f"label: gpt\nsize=64MiB, type={ESP}\n")
    found = bootguesses.guess(label("a", configuration=text), {"a": data})
    assert found.order.firmware == "uefi" and "cannot be used" in found.why
