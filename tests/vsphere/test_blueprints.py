"""A machine on paper: written and read back, refused where it is newer, damaged or too large."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from typing import Any

import pytest

from reconciler.base import errors
from reconciler.sources.vsphere.blueprints import blueprints


def _blueprint() -> blueprints.Blueprint:
    return blueprints.Blueprint(
        name="oblVM1",
        instance_uuid="5030a5b0-0000-4000-8000-000000000001",
        bios_uuid="4230a5b0-0000-4000-8000-000000000001",
        guest_id="ubuntu64Guest",
        version="vmx-14",
        cpus=2,
        memory_mib=2048,
        controllers=(blueprints.Controller(key=1000, type="ParaVirtualSCSIController", bus=0),),
        disks=(
            blueprints.Disk(
                label="Hard disk 1",
                controller=1000,
                unit=0,
                slot="scsi0:0",
                size=1 << 20,
                kind="Flat",
                mode="persistent",
                thin=True,
            ),
        ),
        nics=(blueprints.Nic(label="Network adapter 1", type="VirtualVmxnet3", network="VM Netzwerk ä"),),
        place=blueprints.Place(vcenter="vc1", folder="/DC0/vm/gold"),
        vmx=blueprints.Packed.of("oblVM1.vmx", b'displayName = "oblVM1"\n'),
    )


def test_what_was_written_is_read_back() -> None:
    made = _blueprint()
    text = made.write()
    assert blueprints.parse(text, "image i1") == made
    assert made.vmx is not None
    assert made.vmx.content() == b'displayName = "oblVM1"\n'
    assert "ä" in text


def test_unknown_words_of_the_same_version_are_ignored() -> None:
    document = json.loads(_blueprint().write()) | {"colour": "green"}
    assert blueprints.parse(json.dumps(document), "image i1") == _blueprint()


def test_a_newer_version_is_refused_with_the_way_out() -> None:
    document = json.loads(_blueprint().write()) | {"formatVersion": 2, "disks": "elsewhere"}
    with pytest.raises(errors.FormatTooNew, match="version 2") as caught:
        blueprints.parse(json.dumps(document), "image i1")
    assert "--to" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpus": "two"}, "cpus"),
        ({"disks": [{"label": "Hard disk 1"}]}, r"disks\.0\.controller"),
        ({"kind": "Container"}, "no VirtualMachine"),
        ({"formatVersion": True}, "True"),
        ({"formatVersion": 0}, "0"),
        ({"place": None}, "place"),
    ],
)
def test_damage_says_where(change: dict[str, Any], words: str) -> None:
    document = json.loads(_blueprint().write()) | change
    with pytest.raises(blueprints.Damaged, match=words):
        blueprints.parse(json.dumps(document), "image i1")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null"])
def test_no_document_is_damage(text: str) -> None:
    with pytest.raises(blueprints.Damaged, match="image i1"):
        blueprints.parse(text, "image i1")


def test_a_packed_file_brings_no_more_than_it_says() -> None:
    bomb = b64encode(zlib.compress(bytes(1 << 20))).decode()
    with pytest.raises(blueprints.Damaged, match="100 bytes"):
        blueprints.Packed(name="x.nvram", size=100, data=bomb).content()
    with pytest.raises(blueprints.Damaged, match="unpacked"):
        blueprints.Packed(name="x.nvram", size=100, data="%%%").content()
    whole = blueprints.Packed.of("x.nvram", b"0123456789")
    with pytest.raises(blueprints.Damaged, match="11 bytes"):
        blueprints.Packed(name="x.nvram", size=11, data=whole.data).content()
