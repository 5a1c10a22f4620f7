"""``hack/read-pool``: FORMAT.md alone is enough to have everything back, also from a damaged pool."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pool_samples as samples
import pytest
from blake3 import blake3
from pool_samples import MIB

from reconciler.base import digests

READER = Path(__file__).parents[2] / "hack" / "read-pool"
#: Noise, words, zeros, a page of zeros, and a last block that is short.
FIRST = samples.noise(5 * MIB + 77, 1) + b"words " * 100_000 + bytes(36 * MIB) + samples.noise(2 * MIB + 4099, 2)
SECOND = samples.patch(FIRST, 3 * MIB + 17, samples.noise(9000, 3))[:-8] + b"changed!"

PAGES = [samples.noise(40_000, 4), bytes(9), b"entry " * 10_000, samples.noise(40_000, 4)]


def read(*words: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the reader in an interpreter that finds no ``reconciler``."""
    hide = "import sys, runpy; sys.modules['reconciler'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hide, READER, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def restored(root: Path, image: str) -> bytes:
    """What the reader makes of the image's disk, beside the pool."""
    folder = root.parent / f"restored-{image}"
    read(root, image, folder)
    data = (folder / "d.raw").read_bytes()
    shutil.rmtree(folder)
    return data


def flip(path: Path, offset: int) -> None:
    """Damage one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


def reseal(path: Path, **fields: object) -> None:
    """Write a JSON object with other fields and a true seal."""
    value = {**json.loads(path.read_bytes()), **fields}
    value.pop("seal")
    path.write_text(json.dumps({**value, "seal": digests.json_digest(value)}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of two images, written by Holdfast and closed; tests read it, or damage a copy."""
    root = tmp_path_factory.mktemp("standalone") / "pool"
    samples.create(root)
    pool = samples.open_pool(root)
    samples.store(pool, "i0", FIRST)
    samples.store(pool, "i1", SECOND, parent="i0", attached={"files": PAGES})
    pool.close()
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of that pool without its index."""
    return Path(shutil.copytree(whole, tmp_path / "pool", ignore=shutil.ignore_patterns("index", "lock")))


def test_images_are_listed_oldest_first(whole: Path) -> None:
    lines = [line.split() for line in read(whole).stdout.splitlines()]
    assert [(line[0], line[2], line[-1]) for line in lines] == [
        ("i0", "oblVM1", str(len(FIRST))),
        ("i1", "oblVM1", str(len(SECOND))),
    ]


def test_every_image_comes_back_to_the_byte_and_the_pool_is_left_alone(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert restored(whole, "i0") == FIRST
    assert restored(whole, "i1") == SECOND
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_the_pages_of_an_attachment_come_back_one_by_one(whole: Path, tmp_path: Path) -> None:
    read(whole, "i1", tmp_path)
    assert [path.read_bytes() for path in sorted((tmp_path / "files.pages").iterdir())] == PAGES
    read(whole, "i0", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["d.raw"]


def test_a_damaged_attachment_costs_no_disk(root: Path) -> None:
    pool = samples.open_pool(root)
    path, record = samples.locate(pool, PAGES[2])
    pool.close()
    samples.flip(path, record)
    out = root.parent / "out"
    assert "not what its fingerprint says" in read(root, "i1", out, expect=1).stderr
    assert (out / "d.raw").read_bytes() == SECOND
    assert not (out / "files.pages").exists()


def test_the_restored_file_is_sparse(whole: Path, tmp_path: Path) -> None:
    read(whole, "i0", tmp_path)
    assert (tmp_path / "d.raw").stat().st_blocks * 512 < len(FIRST) - 30 * MIB


def test_no_index_is_needed(root: Path) -> None:
    assert not (root / "index").exists()
    assert restored(root, "i1") == SECOND


def test_the_second_header_is_taken_where_the_first_is_damaged(root: Path) -> None:
    flip(root / "pool.json", 40)
    assert restored(root, "i1") == SECOND
    (root / "pool-copy.json").unlink()
    assert "is this a DedupePool" in read(root, expect=1).stderr


@pytest.mark.parametrize("place", ["record", "footer", "trailer", "cut", "gone"])
def test_the_second_copy_of_the_pages_is_taken_where_the_first_is_damaged(root: Path, place: str) -> None:
    for path in samples.container_files(root, "meta-a"):
        size = path.stat().st_size
        if place == "gone":
            path.unlink()
        elif place == "cut":
            with path.open("r+b") as file:
                file.truncate(100)
        else:
            flip(path, {"record": 64 + 48 + 5, "footer": size - 88 - 20, "trailer": size - 30}[place])
    assert restored(root, "i1") == SECOND
    for path in samples.container_files(root, "meta-b"):
        path.unlink()
    if place in ("record", "cut", "gone"):
        assert "missing or damaged everywhere" in read(root, "i1", root.parent / "none", expect=1).stderr


def test_a_container_without_its_end_is_read_record_by_record(root: Path) -> None:
    path = samples.container_files(root, "data")[0]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 40)
    done = read(root, "i0", root.parent / "out")
    assert "read one by one" in done.stderr
    assert (root.parent / "out" / "d.raw").read_bytes() == FIRST


def test_a_damaged_segment_is_never_handed_on(root: Path) -> None:
    # The full ones hold nothing but what the first image brought.
    full = max(samples.container_files(root, "data"), key=lambda path: path.stat().st_size)
    flip(full, 64 + 48 + 1000)
    done = read(root, "i0", root.parent / "out", expect=1)
    assert "not what its fingerprint says" in done.stderr
    assert not (root.parent / "out" / "d.raw").exists()


@pytest.mark.parametrize("change", [{"poolFormat": 2}, {"formatVersion": 2}, {"features": ["encryption"]}])
def test_a_newer_pool_is_refused(root: Path, change: dict[str, object]) -> None:
    reseal(root / "pool.json", **change)
    assert "newer" in read(root, expect=4).stderr
    assert "newer" in read(root, "i0", root.parent / "out", expect=4).stderr


def test_a_newer_manifest_is_refused(root: Path) -> None:
    reseal(root / "manifests" / "i1.json", formatVersion=3)
    assert "newer" in read(root, "i1", root.parent / "out", expect=4).stderr


def test_a_disk_digest_that_does_not_hold_is_no_restore(root: Path) -> None:
    path = root / "manifests" / "i0.json"
    label = json.loads(path.read_bytes())["label"]
    label["disks"][0]["digest"] = "blake3-1m:" + blake3(b"another").hexdigest()
    reseal(path, label=label)
    assert "do not add up" in read(root, "i0", root.parent / "out", expect=1).stderr
    assert not list((root.parent / "out").glob("*"))


def test_a_damaged_manifest_is_named_and_the_other_images_stay(root: Path) -> None:
    flip(root / "manifests" / "i1.json", 200)
    done = read(root)
    assert "i1.json" in done.stderr
    assert done.stdout.split()[0] == "i0"
    assert restored(root, "i0") == FIRST
    read(root, "i1", root.parent / "out", expect=1)


@pytest.mark.parametrize(("words", "code"), [((), 64), (("i0",), 64), (("nope", "out"), 1), (("../pool", "out"), 1)])
def test_what_was_asked_wrongly_is_said(whole: Path, words: tuple[str, ...], code: int) -> None:
    pool = [whole] if words else []
    assert "read-pool: " in read(*pool, *words, expect=code).stderr


def test_a_target_that_exists_is_left_alone(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "d.raw").write_text("mine")
    assert "exists" in read(whole, "i0", tmp_path, expect=4).stderr
    assert (tmp_path / "d.raw").read_text() == "mine"


def test_a_name_beyond_ascii_is_sealed_as_it_is_read(root: Path) -> None:
    path = root / "manifests" / "i0.json"
    label = json.loads(path.read_bytes())["label"]
    label["client"]["name"] = "Büro-Süd"
    reseal(path, label=label)
    assert "Büro-Süd" in read(root).stdout
