"""What a guest writes into its own disk never makes the backup read another file of this host."""

from __future__ import annotations

import struct
from pathlib import Path

import disk_samples as samples
import pytest

from reconciler.base import errors
from reconciler.sources.diskimages import converted, formats, headers

MIB = samples.MIB
SECRET = b"root:$6$a secret of this host" * 2000


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "shadow"
    path.write_bytes(SECRET)
    return path


@samples.needs_qemu
@pytest.mark.parametrize("name", ["a.img", "a.raw", "a-flat.vmdk"])
def test_a_raw_disk_that_begins_like_a_qcow2_is_kept_byte_for_byte(machine: Path, secret: Path, name: str) -> None:
    samples.qemu("qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", machine / name, "1M")
    content = (machine / name).read_bytes()
    reading = samples.freeze(samples.source(machine.parent))
    (disk,) = reading.disks
    assert samples.whole(disk) == content
    verdict = reading.finish()
    assert [found.code for found in verdict.warnings] == ["RawByName"]
    assert verdict.failed == ()
    reading.close()


@samples.needs_qemu
@pytest.mark.parametrize("suffix", [".qcow2", ""])
@pytest.mark.parametrize("relative", [True, False])
def test_a_backing_file_outside_the_folder_is_refused(machine: Path, secret: Path, suffix: str, relative: bool) -> None:
    backing = Path("../../shadow") if relative else secret
    path = machine / f"a{suffix}"
    samples.qemu("qemu-img", "create", "-f", "qcow2", "-b", backing, "-F", "raw", path, "1M")
    reading = samples.freeze(samples.source(machine.parent, disks=["*"]))
    assert reading.disks == ()
    (missing,) = reading.missing
    assert missing.code == "ForeignReference"
    assert "shadow" in missing.message and "not followed" in missing.message
    reading.close()


@samples.needs_qemu
def test_a_link_in_the_folder_does_not_lead_out_of_it(machine: Path, secret: Path) -> None:
    (machine / "base").symlink_to(secret)
    samples.qemu("qemu-img", "create", "-f", "qcow2", "-b", "base", "-F", "raw", machine / "a.qcow2", "1M")
    with pytest.raises(formats.ForeignReference):
        formats.identify(machine / "a.qcow2", machine)


@samples.needs_qemu
def test_a_backing_chain_within_the_folder_is_followed(machine: Path) -> None:
    data = bytearray(samples.content(4 * MIB))
    samples.write_image(machine / "base.qcow2", bytes(data), "qcow2")
    for below, above in (("base", "middle"), ("middle", "top")):
        path = machine / f"{above}.snap"
        below_name = f"{below}.qcow2" if below == "base" else f"{below}.snap"
        samples.qemu("qemu-img", "create", "-f", "qcow2", "-b", below_name, "-F", "qcow2", path)
    samples.qemu("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", machine / "top.snap")
    data[MIB : MIB + 65536] = b"\7" * 65536
    reading = samples.freeze(samples.source(machine.parent, disks=["top.snap"]))
    assert reading.missing == ()
    assert samples.whole(reading.disks[0]) == data
    (machine / "base.qcow2").touch()
    assert [found.code for found in reading.finish().failed] == ["DiskChanged"]
    reading.close()
    with (machine / "base.qcow2").open("r+b") as file:
        file.truncate((machine / "base.qcow2").stat().st_size - 512)
    with pytest.raises(errors.SourceError, match=r"base\.qcow2: truncated"):
        converted.check(formats.identify(machine / "top.snap", machine))


@samples.needs_qemu
def test_a_chain_that_bites_its_tail_ends(machine: Path) -> None:
    samples.qemu("qemu-img", "create", "-f", "qcow2", machine / "b.qcow2", "1M")
    samples.qemu("qemu-img", "create", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", machine / "a.qcow2", "1M")
    samples.qemu("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", machine / "b.qcow2")
    with pytest.raises(errors.SourceError, match="endless"):
        formats.identify(machine / "a.qcow2", machine)


@samples.needs_qemu
def test_an_external_data_file_is_followed_within_the_folder_only(machine: Path, secret: Path) -> None:
    data = samples.content(MIB)
    samples.qemu(
        "qemu-img",
        "create",
        "-f",
        "qcow2",
        "-o",
        f"data_file={machine}/a.data,data_file_raw=on",
        machine / "a.qcow2",
        "1M",
    )
    (machine / "a.data").write_bytes(data)
    reading = samples.freeze(samples.source(machine.parent, disks=["a.qcow2"]))
    assert reading.missing == ()
    assert samples.whole(reading.disks[0]) == data
    reading.close()
    outside = machine.parent.parent / "outside.data"
    samples.qemu("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={outside}", machine / "b.qcow2", "1M")
    with pytest.raises(formats.ForeignReference, match=r"outside\.data"):
        formats.identify(machine / "b.qcow2", machine)


@pytest.mark.parametrize(
    "line",
    [
        'RW 100 FLAT "../../shadow" 0',
        'RW 100 FLAT "/etc/passwd" 0',
        'RW 100 FLAT "nbd:localhost:10809" 0',
        'RW\x0b100 FLAT "../../shadow" 0',
        'RW 100FLAT "../../shadow" 0',
        '\tRW 100 VMFS  "../../shadow"',
        'RW -5 FLAT "../../shadow" 0',
        'x\rRW 1 FLAT "a"\nRW 100 SPARSE "../../shadow"',
        "RW 100 ZERO",
        'RDONLY 100 FLAT "a.img" 0',
        'RW 100 VMFSRDM "a-rdm.vmdk"',
    ],
)
def test_a_vmdk_descriptor_names_plain_files_beside_it_or_is_refused(machine: Path, secret: Path, line: str) -> None:
    (machine / "a.vmdk").write_bytes(
        headers.DESCRIPTOR_MAGIC
        + f'\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n{line}\n'.encode()
    )
    with pytest.raises(errors.SourceError):
        formats.identify(machine / "a.vmdk", machine)


def test_a_descriptor_hidden_in_a_sparse_vmdk_is_not_obeyed(machine: Path, secret: Path) -> None:
    text = headers.DESCRIPTOR_MAGIC + b'\nparentCID=ffffffff\nRW 100 FLAT "../../shadow" 0\n'
    header = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 20).ljust(512, b"\0")
    (machine / "a.vmdk").write_bytes(header + text.ljust(20 * 512, b"\0"))
    with pytest.raises(errors.SourceError, match="capacity"):
        formats.identify(machine / "a.vmdk", machine)


@samples.needs_qemu
def test_a_vmdk_parent_outside_the_folder_is_refused(machine: Path, tmp_path: Path) -> None:
    base = samples.write_image(tmp_path / "base.vmdk", samples.content(MIB), "vmdk")
    samples.qemu("qemu-img", "create", "-f", "vmdk", "-b", base, "-F", "vmdk", machine / "a.vmdk")
    with pytest.raises(formats.ForeignReference, match=r"base\.vmdk"):
        formats.identify(machine / "a.vmdk", machine)


@samples.needs_qemu
def test_a_name_that_says_nothing_lets_the_content_decide(machine: Path) -> None:
    data = samples.content(MIB)
    samples.write_image(machine / "disk0", data, "qcow2")
    reading = samples.freeze(samples.source(machine.parent, disks=["disk*"]))
    assert samples.whole(reading.disks[0]) == data
    reading.close()
