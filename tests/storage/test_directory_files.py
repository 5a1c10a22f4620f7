"""A Directory unit is transparent: its files are usable as they are, written in order, and distrusted when read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import unit_samples as samples
import zstandard
from unit_samples import MIB, SampleDisk

from reconciler.base import errors, files, meters
from reconciler.storage import directory, identities, labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "unit"
    path.mkdir()
    identities.write(path, identities.new("Directory", samples.OWNER))
    return path


@pytest.fixture
def unit(root: Path) -> directory.DirectoryUnit:
    return directory.DirectoryUnit(name="unit", root=root, identity=identities.read(root, "unit"), owner=samples.OWNER)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _files(root: Path, image: str) -> dict[str, Path]:
    return {path.suffix: path for path in (root / "oblvm1" / image).iterdir()}


def _reseal(path: Path, **changes: object) -> None:
    document = labels.unseal(path.read_bytes(), "test")
    path.write_bytes(labels.seal({**document, **changes}))


def test_a_full_is_a_raw_file_of_the_exact_size_with_its_holes(unit: directory.DirectoryUnit, root: Path) -> None:
    data = samples.patch(bytes(64 * MIB + 100), 5 * MIB, samples.noise(MIB, 1))
    samples.store(unit, samples.label(), {"d": data})
    path = _files(root, "img-1")[".raw"]
    assert path.read_bytes() == data
    found = path.stat()
    assert found.st_size == 64 * MIB + 100
    assert found.st_blocks * 512 <= 1.5 * MIB
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img (package qemu-utils) is missing")
@pytest.mark.skipif(not shutil.which("mke2fs"), reason="mke2fs (package e2fsprogs) is missing")
def test_a_full_can_be_handed_to_qemu_and_to_a_loop_mount(
    unit: directory.DirectoryUnit, root: Path, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "hello.txt").write_text("read without Holdfast")
    source = tmp_path / "source.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", content, source, "16M"], check=True, capture_output=True)
    samples.store(unit, samples.label(), {"d": source.read_bytes()})
    stored = _files(root, "img-1")[".raw"]
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, stored], check=True, capture_output=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-o", "loop,ro,noload", stored, mounted], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a loop mount is impossible here: {done.stderr.strip()}")
    try:
        assert (mounted / "hello.txt").read_text() == "read without Holdfast"
    finally:
        subprocess.run(["umount", mounted], check=True)
    assert unit.verify("img-1", meter=meters.Meter()) == ()


def test_an_incremental_is_a_sparse_file_of_the_changed_blocks(unit: directory.DirectoryUnit, root: Path) -> None:
    old = samples.noise(8 * MIB, 2)
    new = samples.patch(old, 3 * MIB, b"new")
    samples.store(unit, samples.label("i0"), {"d": old})
    commit, _ = samples.store(unit, samples.label("i1", parent="i0"), {"d": new}, parent="i0")
    path = _files(root, "i1")[".blocks"]
    assert path.read_bytes() == bytes(3 * MIB) + new[3 * MIB : 4 * MIB] + bytes(4 * MIB)
    assert path.stat().st_blocks * 512 <= 1.25 * MIB
    assert commit.stored_bytes == MIB + 8 * 32 + 16
    assert unit.capacity().used == 8 * MIB + 8 * 32 + commit.stored_bytes


def test_everything_is_synced_before_the_rename_and_the_folders_after_it(
    unit: directory.DirectoryUnit, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(handle: int) -> None:
        acts.append(str(Path(f"/proc/self/fd/{handle}").readlink().relative_to(root)))
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        acts.append(f"{self.relative_to(root)} becomes {target.relative_to(root)}")
        return rename(self, target)

    samples.store(unit, samples.label("i0"), {"d": samples.noise(MIB, 3)})
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    samples.store(unit, samples.label("i1", parent="i0"), {"d": samples.noise(MIB, 4)}, parent="i0")
    temporary = next(act for act in acts if " becomes oblvm1/i1" in act).split()[0]
    acts = [act.replace(temporary, "TMP") for act in acts]
    document = next(act for act in acts if act.startswith("TMP/.tmp-image.json"))
    assert acts == [
        "TMP/00-d.blocks",
        "TMP/00-d.digests",
        "TMP/00-d.changed",
        document,
        "TMP",
        "TMP becomes oblvm1/i1",
        "oblvm1",
        ".",
    ]
    acts.clear()
    unit.delete("i1")
    assert acts[0].startswith("oblvm1/i1 becomes oblvm1/.trash-i1-")
    assert acts[1:] == ["oblvm1"]


def test_a_commit_whose_last_sync_fails_is_no_commit(
    unit: directory.DirectoryUnit, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = samples.tree(root)
    writer = unit.begin(samples.label(), ["d"])
    writer.write(SampleDisk("d", samples.noise(MIB, 5)), meter=meters.Meter())
    sync = files.sync_folder

    def failing(folder: Path) -> None:
        if folder == root / "oblvm1":
            raise OSError(errno.EIO, "Input/output error", str(folder))
        sync(folder)

    monkeypatch.setattr(files, "sync_folder", failing)
    with pytest.raises(errors.UnitError):
        writer.commit(samples.label())
    writer.abort()
    monkeypatch.undo()
    assert samples.held(unit) == {}
    assert samples.tree(root) == before


def test_a_base_that_went_while_the_incremental_was_written_refuses_the_commit(unit: directory.DirectoryUnit) -> None:
    samples.store(unit, samples.label("i0"), {"d": samples.noise(MIB, 6)})
    writer = unit.begin(samples.label("i1", parent="i0"), ["d"])
    writer.write(SampleDisk("d", samples.noise(MIB, 7)), meter=meters.Meter(), parent="i0")
    unit.delete("i0")
    with pytest.raises(errors.UnitError, match="i0"):
        writer.commit(samples.label("i1", parent="i0"))
    writer.abort()
    assert samples.held(unit) == {}


def test_two_parents_in_one_image_are_refused(unit: directory.DirectoryUnit) -> None:
    for image in ("i0", "i1"):
        samples.store(unit, samples.label(image), {"a": bytes(9), "b": bytes(9)})
    writer = unit.begin(samples.label("i2", parent="i1"), ["a", "b"])
    writer.write(SampleDisk("a", bytes(9)), meter=meters.Meter(), parent="i1")
    with pytest.raises(errors.UnitError, match="two parents"):
        writer.write(SampleDisk("b", bytes(9)), meter=meters.Meter(), parent="i0")
    writer.abort()


def test_a_chain_without_its_base_is_damaged_and_says_which_image_is_missing(unit: directory.DirectoryUnit) -> None:
    samples.store(unit, samples.label("i0"), {"d": samples.noise(2 * MIB, 8)})
    samples.store(
        unit, samples.label("i1", parent="i0"), {"d": samples.noise(2 * MIB, 9)}, parent="i0", changed=((0, 1),)
    )
    unit.delete("i0")
    with unit.open("i1") as opened, pytest.raises(errors.ImageDamaged, match=r"i1.*d.*i0"):
        opened.disk("d")
    (damage,) = unit.verify("i1", meter=meters.Meter())
    assert (damage.offset, damage.length) == (0, 2 * MIB)
    assert "i0" in damage.message


def test_verification_finds_data_in_what_should_be_a_hole(unit: directory.DirectoryUnit, root: Path) -> None:
    samples.store(unit, samples.label(), {"d": samples.patch(bytes(8 * MIB), 0, samples.noise(MIB, 10))})
    with _files(root, "img-1")[".raw"].open("r+b") as file:
        file.seek(5 * MIB + 9)
        file.write(b"somebody mounted it for writing")
    (damage,) = unit.verify("img-1", meter=meters.Meter())
    assert damage.offset // MIB == 5


@pytest.mark.parametrize("suffix", [".raw", ".digests"])
def test_a_file_that_is_short_or_gone_is_damage(unit: directory.DirectoryUnit, root: Path, suffix: str) -> None:
    data = samples.noise(3 * MIB, 11)
    samples.store(unit, samples.label(), {"d": data})
    path = _files(root, "img-1")[suffix]
    os.truncate(path, path.stat().st_size * 2 // 3)
    (short,) = unit.verify("img-1", meter=meters.Meter())
    assert short.offset == (2 * MIB if suffix == ".raw" else 0)
    path.unlink()
    (gone,) = unit.verify("img-1", meter=meters.Meter())
    assert (gone.offset, gone.length) == (0, 3 * MIB)


def test_a_damaged_list_of_changes_is_never_believed(unit: directory.DirectoryUnit, root: Path) -> None:
    samples.store(unit, samples.label("i0"), {"d": samples.noise(4 * MIB, 12)})
    samples.store(unit, samples.label("i1", parent="i0"), {"d": samples.noise(4 * MIB, 13)}, parent="i0")
    path = _files(root, "i1")[".changed"]
    path.write_bytes(path.read_bytes()[:8] + (2 * MIB).to_bytes(8, "little"))
    with unit.open("i1") as opened:
        with pytest.raises(errors.ImageDamaged, match="changed"):
            opened.changed("d", "i0")
        with pytest.raises(errors.ImageDamaged, match="changed"):
            opened.disk("d")


@pytest.mark.parametrize("name", ["../../unit.json", "/etc/passwd", "image.json", ""])
def test_a_document_cannot_lead_out_of_its_folder(unit: directory.DirectoryUnit, root: Path, name: str) -> None:
    samples.store(unit, samples.label(), {"d": b"data"})
    path = root / "oblvm1" / "img-1" / "image.json"
    disks = json.loads(path.read_bytes())["disks"]
    _reseal(path, disks=[{**disks[0], "data": name}])
    with pytest.raises(errors.ImageDamaged):
        unit.open("img-1")


def test_a_chain_that_comes_back_to_itself_is_damage(unit: directory.DirectoryUnit, root: Path) -> None:
    for image, parent in (("i0", None), ("i1", "i0"), ("i2", "i1")):
        samples.store(unit, samples.label(image, parent=parent), {"d": samples.noise(MIB, 14)}, parent=parent)
    path = root / "oblvm1" / "i1" / "image.json"
    disks = json.loads(path.read_bytes())["disks"]
    _reseal(path, disks=[{**disks[0], "parent": "i2"}], base="i2")
    with unit.open("i2") as opened, pytest.raises(errors.ImageDamaged, match="comes back"):
        opened.disk("d")


def test_a_folder_moved_to_another_name_is_not_the_image_of_that_name(
    unit: directory.DirectoryUnit, root: Path
) -> None:
    samples.store(unit, samples.label(), {"d": b"data"})
    shutil.copytree(root / "oblvm1" / "img-1", root / "oblvm1" / "img-2")
    assert samples.held(unit).keys() == {"img-1"}
    assert unit.unreadable() == ("oblvm1/img-2",)


def test_what_is_not_holdfasts_is_neither_listed_nor_swept(unit: directory.DirectoryUnit, root: Path) -> None:
    samples.store(unit, samples.label(), {"d": b"data"})
    for name in ("lost+found/x", ".snapshot/hourly", "oblvm1/.tmp-mine", "oblvm1/.zfs", "notes/.trash"):
        (root / name).mkdir(parents=True)
    (root / "README").write_text("mine")
    before = samples.tree(root)
    assert samples.held(unit).keys() == {"img-1"}
    assert unit.unreadable() == ()
    assert unit.sweep([]) == 0
    assert unit.reclaim(meter=meters.Meter()) == 0
    assert samples.tree(root) == before


def test_a_writer_of_the_same_image_that_lives_is_not_pushed_out(unit: directory.DirectoryUnit) -> None:
    writer = unit.begin(samples.label(), ["d"])
    with pytest.raises(errors.UnitError, match="being written"):
        unit.begin(samples.label(), ["d"])
    assert unit.sweep([]) == 0
    writer.write(SampleDisk("d", b"data"), meter=meters.Meter())
    with pytest.raises(errors.UnitError, match="already"):
        writer.write(SampleDisk("d", b"data"), meter=meters.Meter())
    with pytest.raises(errors.UnitError, match="named"):
        writer.write(SampleDisk("e", b"data"), meter=meters.Meter())
    writer.commit(samples.label())
    writer.abort()
    assert samples.load(unit, "img-1", "d") == b"data"


def test_opened_images_give_back_their_files(unit: directory.DirectoryUnit) -> None:
    samples.store(unit, samples.label("i0"), {"d": samples.noise(2 * MIB, 15)})
    samples.store(
        unit, samples.label("i1", parent="i0"), {"d": samples.noise(2 * MIB, 16)}, parent="i0", changed=((0, 1),)
    )
    before = _open_files()
    opened = unit.open("i1")
    for _ in range(3):
        bytes(opened.disk("d").pread(0, 2 * MIB))
    assert _open_files() == before + 6
    opened.close()
    assert _open_files() == before


PAGES = [samples.noise(20_000, 700 + number) for number in range(6)]


def _chain(unit: directory.DirectoryUnit, root: Path) -> Path:
    """``i2`` needs pages of ``i1`` and ``i0``; the folder of images."""
    disk = {"d": samples.noise(5000, 1)}
    samples.store(unit, samples.label("i0"), disk, attached={"files": PAGES[:4]})
    for image, parent, pages in (("i1", "i0", PAGES[:5]), ("i2", "i1", [PAGES[5], *PAGES[:5]])):
        samples.store(unit, samples.label(image, parent=parent), disk, parent=parent, attached={"files": pages})
    return root / "oblvm1"


def _readable(unit: directory.DirectoryUnit, image: str) -> list[int]:
    """Which pages of the attachment can be read; those that cannot are all damaged."""
    with unit.open(image) as opened:
        found = opened.attachment("files")
        good = []
        for number in range(len(found.pages)):
            try:
                found.read(number)
            except errors.ImageDamaged:
                continue
            good.append(number)
    damaged = unit.verify(image, meter=meters.Meter())
    assert [one.offset // 20_000 for one in damaged] == [n for n in range(len(found.pages)) if n not in good]
    assert all(one.attachment and one.disk == "files" and one.length == 20_000 for one in damaged)
    return good


def test_the_pages_of_an_image_can_be_read_by_zstd(unit: directory.DirectoryUnit, root: Path) -> None:
    folder = _chain(unit, root)
    with (folder / "i0" / "attachment-files.zst").open("rb") as file:
        whole = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        assert whole.read() == b"".join(PAGES[:4])
    assert (folder / "i1" / "attachment-files.zst").stat().st_size < 21_000
    names = {path.name for path in (folder / "i2").iterdir()}
    assert names == {"image.json", "00-d.blocks", "00-d.digests", "00-d.changed", "attachment-files.zst", "attachment-files.pages"}  # fmt: skip
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (folder / "i2").iterdir())


def test_a_page_of_the_chain_that_is_gone_costs_no_other_page(unit: directory.DirectoryUnit, root: Path) -> None:
    folder = _chain(unit, root)
    (folder / "i1" / "attachment-files.zst").unlink()
    assert _readable(unit, "i2") == [0, 1, 2, 3, 4]
    shutil.rmtree(folder / "i1")
    with unit.open("i2") as opened:
        found = opened.attachment("files")
        assert found.read(0) == PAGES[5]
        with pytest.raises(errors.ImageDamaged, match="base i1 cannot be used"):
            found.read(1)


def test_a_list_that_was_changed_is_damage(unit: directory.DirectoryUnit, root: Path) -> None:
    folder = _chain(unit, root)
    path = folder / "i1" / "attachment-files.pages"
    path.write_bytes(path.read_bytes()[:-48])
    with unit.open("i1") as opened, pytest.raises(errors.ImageDamaged, match="contradicts its digest"):
        opened.attachment("files")
    (found,) = unit.verify("i1", meter=meters.Meter())
    assert (found.part, found.offset) == ("attachment files", 0)
    assert _readable(unit, "i0") == [0, 1, 2, 3]
    assert _readable(unit, "i2") == [0]
    # What the parent can no longer lead to is stored anew.
    disk = {"d": samples.noise(5000, 1)}
    samples.store(unit, samples.label("i3", parent="i2"), disk, parent="i2", attached={"files": PAGES})
    assert _readable(unit, "i3") == [0, 1, 2, 3, 4, 5]


def test_a_base_that_was_made_anew_with_other_places_serves_as_before(
    unit: directory.DirectoryUnit, root: Path
) -> None:
    _chain(unit, root)
    unit.delete("i1")
    disk = {"d": samples.noise(5000, 1)}
    samples.store(unit, samples.label("i1", parent="i0"), disk, attached={"files": PAGES[:5][::-1]})
    assert _readable(unit, "i2") == [0, 1, 2, 3, 4, 5]


def test_an_image_of_an_earlier_version_has_no_attachments(unit: directory.DirectoryUnit, root: Path) -> None:
    samples.store(unit, samples.label("i0"), {"d": b"data"})
    path = root / "oblvm1" / "i0" / "image.json"
    document = labels.unseal(path.read_bytes(), "test")
    assert document.pop("attachments") == []
    assert document["formatVersion"] == 1
    path.write_bytes(labels.seal(document))
    with unit.open("i0") as opened:
        assert opened.attachments() == ()
    samples.store(unit, samples.label("i1", parent="i0"), {"d": b"data"}, parent="i0", attached={"files": PAGES})
    assert _readable(unit, "i1") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "change", [{"data": "../../x"}, {"pages": "00-d.raw"}, {"name": "A"}, {"parent": "../i0"}, {"digest": "blake3:00"}]
)
def test_an_attachment_that_names_what_it_may_not_is_damage(
    unit: directory.DirectoryUnit, root: Path, change: dict[str, str]
) -> None:
    folder = _chain(unit, root)
    document = labels.unseal((folder / "i1" / "image.json").read_bytes(), "test")
    _reseal(folder / "i1" / "image.json", attachments=[{**document["attachments"][0], **change}])
    with pytest.raises(errors.ImageDamaged), unit.open("i1") as opened:
        opened.attachment("files")


def test_no_file_of_an_attachment_stays_open(unit: directory.DirectoryUnit, root: Path) -> None:
    _chain(unit, root)
    before = _open_files()
    opened = unit.open("i2")
    found = opened.attachment("files")
    assert _open_files() == before + 3
    for image in ("i2", "i1", "i0"):
        unit.delete(image)
    assert [found.read(number) for number in range(6)] == [PAGES[5], *PAGES[:5]]
    opened.close()
    opened.close()
    assert _open_files() == before


def test_what_did_not_reach_the_device_as_written_replaces_nothing(unit: directory.DirectoryUnit, root: Path) -> None:
    data = samples.noise(2 * MIB, 1)
    samples.store(unit, samples.label(), {"d": data})
    samples.flip(root, data[100:164])
    writer = unit.begin(samples.label(), ["d"], replaces=True)
    writer.write(SampleDisk("d", data), meter=meters.Meter())
    samples.flip(root, data[MIB + 100 : MIB + 164])
    (new,) = (root / "oblvm1").glob(".tmp-*")
    with pytest.raises(errors.UnitError, match="did not read back as written"):
        writer.commit(samples.label())
    writer.abort()
    assert not new.exists()
    assert [(one.offset, one.length) for one in unit.verify("img-1", meter=meters.Meter())] == [(0, 2 * MIB)]
