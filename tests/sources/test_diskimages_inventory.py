"""Which folders are machines, which files are disks, and what stands in the way."""

from __future__ import annotations

import os
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import errors
from reconciler.sources.nbd import bindings


def test_each_matching_folder_is_a_machine_known_by_its_real_path(tmp_path: Path) -> None:
    for name in ("oblVM2", "oblVM1", "other", ".oblVM3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.img").write_bytes(b"x")
    (tmp_path / "oblVM9").write_bytes(b"a file, no folder")
    found = samples.source(tmp_path, pattern="oblVM*").inventory()
    assert found.unreachable is None
    assert [machine.name for machine in found.machines] == ["oblVM1", "oblVM2"]
    assert found.machines[0].id == found.machines[0].source == f"diskimages:{(tmp_path / 'oblVM1').resolve()}"
    assert found.machines[0].problem is None


def test_disks_are_matching_files_by_name_without_hidden_ones_and_folders(machine: Path) -> None:
    for name in ("b.img", "a.raw", ".c.img", "notes.txt"):
        (machine / name).write_bytes(b"x")
    (machine / "folder.img").mkdir()
    os.mkfifo(machine / "pipe.img")
    (machine / "link.img").symlink_to(machine / "a.raw")
    (found,) = samples.source(machine.parent).inventory().machines
    assert found.disks == ("a.raw", "b.img", "link.img")


def test_what_looks_like_a_disk_and_is_selected_by_nothing_is_left_out(machine: Path) -> None:
    for name in ("a.img", "b.vdi", "c.QCOW2", ".d.vdi", "notes.txt", "e.raw"):
        (machine / name).write_bytes(b"x")
    (machine / "folder.vhd").mkdir()
    (found,) = samples.source(machine.parent).inventory().machines
    assert (found.disks, found.left_out) == (("a.img", "e.raw"), ("b.vdi", "c.QCOW2"))


def test_parts_of_a_vmdk_are_left_out_by_neither_of_its_two_names(machine: Path) -> None:
    (machine / "a-flat.vmdk").write_bytes(bytes(MIB))
    text = (
        '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="vmfs"\nRW 2048 VMFS "a-flat.vmdk"\n'
    )
    (machine / "a.vmdk").write_text(text)
    for globs, left in (
        (("*.vmdk",), ()),
        (("*-flat.vmdk",), ()),
        (("a.vmdk",), ()),
        (("*.img",), ("a-flat.vmdk", "a.vmdk")),
    ):
        (found,) = samples.source(machine.parent, disks=globs).inventory().machines
        assert found.left_out == left, globs


@pytest.mark.parametrize("name", ["ein Gast ä", "日本語", "comma,name"])
def test_names_may_hold_anything_a_folder_may(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    data = samples.content(200_000)
    samples.write_raw(tmp_path / name / f"{name}.img", data)
    if bindings.missing() is None:
        samples.write_image(tmp_path / name / f"{name}.qcow2", samples.content(MIB), "qcow2")
    reading = samples.freeze(samples.source(tmp_path))
    assert reading.missing == ()
    assert samples.whole(reading.disks[0]) == data
    assert reading.finish().failed == ()
    reading.close()


def test_a_folder_without_disks_is_a_problem_of_that_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.img").write_bytes(b"x")
    empty, full = samples.source(tmp_path).inventory().machines
    assert empty.problem is not None and empty.problem.code == "NoDisks" and "*.img" in empty.problem.message
    assert full.problem is None
    with pytest.raises(errors.SourceError, match="no file in"):
        samples.source(tmp_path).freeze(empty.id)


def test_a_path_that_cannot_be_listed_is_unreachable_and_no_empty_inventory(tmp_path: Path) -> None:
    found = samples.source(tmp_path / "gone").inventory()
    assert found.machines == ()
    assert found.unreachable is not None and "No such file" in found.unreachable.message


def test_a_machine_that_is_gone_cannot_be_frozen(machine: Path) -> None:
    source = samples.source(machine.parent)
    with pytest.raises(errors.SourceError, match="no such machine"):
        source.freeze(f"diskimages:{machine.parent}/elsewhere")


@samples.needs_qemu
def test_files_that_a_vmdk_descriptor_draws_in_are_no_disks_of_their_own(machine: Path) -> None:
    data = samples.content(3 * MIB)
    samples.write_image(machine / "flat.vmdk", data, "vmdk", "subformat=monolithicFlat")
    samples.write_image(machine / "split.vmdk", data, "vmdk", "subformat=twoGbMaxExtentSparse")
    assert sorted(path.name for path in machine.iterdir()) == [
        "flat-flat.vmdk",
        "flat.vmdk",
        "split-s001.vmdk",
        "split.vmdk",
    ]
    (found,) = samples.source(machine.parent).inventory().machines
    assert found.disks == ("flat.vmdk", "split.vmdk")
    (found,) = samples.source(machine.parent, disks=["*-flat.vmdk"]).inventory().machines
    assert found.disks == ("flat-flat.vmdk",)
    reading = samples.freeze(samples.source(machine.parent))
    assert [samples.whole(disk) for disk in reading.disks] == [data, data]
    reading.close()


@samples.needs_qemu
def test_the_layers_below_a_snapshot_are_no_disks_of_their_own(machine: Path) -> None:
    samples.write_image(machine / "base.qcow2", samples.content(MIB), "qcow2")
    samples.write_image(machine / "plain.vmdk", samples.content(MIB), "vmdk")
    for kind, below, above in (
        ("qcow2", "base.qcow2", "middle.snap"),
        ("qcow2", f"{machine}/middle.snap", "top.qcow2"),
        ("vmdk", "plain.vmdk", "plain-000001.vmdk"),
    ):
        name = str(machine / above)
        samples.qemu("qemu-img", "create", "-f", kind, "-b", str(machine / below), "-F", kind, name)
        if kind == "qcow2":
            samples.qemu("qemu-img", "rebase", "-u", "-b", below, "-F", kind, name)
    samples.qemu("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={machine}/own.img", machine / "own.qcow2", "1M")
    (found,) = samples.source(machine.parent).inventory().machines
    assert (found.disks, found.left_out) == (("own.qcow2", "plain-000001.vmdk", "top.qcow2"), ())
    (found,) = samples.source(machine.parent, disks=["base.*"]).inventory().machines
    assert found.disks == ("base.qcow2",) and "top.qcow2" in found.left_out
    samples.qemu("qemu-img", "rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", machine / "base.qcow2")
    (found,) = samples.source(machine.parent, disks=["*.qcow2"]).inventory().machines
    assert "top.qcow2" in found.disks


@samples.needs_qemu
def test_containers_that_are_not_read_are_no_raw_disks(machine: Path) -> None:
    names = {"a.vhd": "vpc", "b.data": "vpc", "c.vdi": "vdi", "d.data": "vdi", "e.qcow2": "qcow2"}
    for name, kind in names.items():
        samples.qemu("qemu-img", "create", "-f", kind, machine / name, "4M")
    with (machine / "e.qcow2").open("r+b") as file:
        file.seek(32)
        file.write(b"\0\0\0\2")
    samples.write_raw(machine / "z.img", b"kept")
    reading = samples.freeze(samples.source(machine.parent, disks=["*"]))
    told = {Path(found.message.split(":")[0]).name: found.message for found in reading.missing}
    assert "a vhd file is not read" in told["a.vhd"] and "a vhd file is not read" in told["b.data"]
    assert "a vdi file is not read" in told["c.vdi"] and "a vdi file is not read" in told["d.data"]
    assert "it is encrypted" in told["e.qcow2"]
    assert [disk.name for disk in reading.disks] == ["z.img"]
    reading.close()


def test_without_the_binding_a_machine_with_containers_names_the_package(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "a.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    monkeypatch.setattr(bindings, "SYSTEM_FOLDER", "/nowhere")
    monkeypatch.setattr("sys.path", [])
    bindings.libnbd.cache_clear()
    try:
        (found,) = samples.source(machine.parent).inventory().machines
    finally:
        bindings.libnbd.cache_clear()
    assert found.problem is not None and found.problem.code == "MissingPackage"
    assert "python3-libnbd" in found.problem.message or "qemu-utils" in found.problem.message


MIB = samples.MIB


def test_names_that_are_no_text_are_said_and_reach_nobody(tmp_path: Path) -> None:
    for name in ("good/a.img", "bad/a.img", "bad/b\udcff.img", "good/c\udcff.vdi", "\udcff/a.img"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = samples.source(tmp_path).inventory()
    bad, good = found.machines
    assert bad.problem is not None and bad.problem.code == "NameNotText" and "b\\xff.img" in bad.problem.message
    assert (bad.disks, good.problem, good.left_out) == (("a.img",), None, ("c\\xff.vdi",))
    assert [(note.code, "\\xff" in note.message) for note in found.notes] == [("NameNotText", True)]
    with pytest.raises(errors.SourceError, match="not UTF-8"):
        samples.source(tmp_path).freeze(bad.id)
