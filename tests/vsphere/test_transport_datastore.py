"""Flat disks over the datastore's HTTP service: exactly the frozen bytes, or an error that says which disk and why."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import random
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transport_samples as samples
from transport_samples import MIB, SIZE, Lab, Snapshot

from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import certificates, sessions
from reconciler.sources.vsphere.transports import datastore, descriptors, ports

pytestmark = samples.needs_peer

ODD = "ödd & 50% +#?%41;=[x] 'n'"
#: As the product waits, but not as long.
PAUSES = (0.01, 0.02, 0.03, 0.04)
QUICK = datastore.Datastore(patience=10, pauses=PAUSES)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One peer for all tests."""
    odd = {"name": ODD, "disks": [{"sizeBytes": 64 * 1024}]}
    large = {"name": "large", "disks": [{"sizeBytes": 1 << 30}]}
    with samples.peer(tmp_path_factory.mktemp("lab"), [odd, large]) as lab:
        yield lab


@pytest.fixture
def frozen(lab: Lab, taken: Snapshot) -> Iterator[ports.Frozen]:
    """The first disk, and a peer without faults afterwards."""
    yield taken.frozen["Hard disk 1"]
    lab.clear_faults()


def test_what_the_snapshot_froze_is_read_while_the_guest_writes(lab: Lab, session: sessions.Session) -> None:
    with samples.snapshot(session) as taken:
        for seed, frozen in enumerate(taken.frozen.values(), 1):
            assert datastore.Datastore().refuses(frozen) is None
            with datastore.Datastore().open(frozen) as disk:
                assert (disk.name, disk.size, disk.sector) == (frozen.disk.label, SIZE, 512)
                assert disk.extents() == ((0, SIZE),)
                lab.write("web 1", frozen.disk.label, 0, b"written meanwhile")
                lab.write("web 1", frozen.disk.label, SIZE - 512, bytes(range(256)) * 2)
                assert samples.whole(disk, 300_001) == samples.content(seed=seed)
        assert taken.readers == [], "no process of this host reads it"
    for number in (1, 2):  # as it was, for the other tests
        lab.write("web 1", f"Hard disk {number}", 0, samples.content(seed=number)[:512])
        lab.write("web 1", f"Hard disk {number}", SIZE - 512, samples.content(seed=number)[-512:])


def test_any_reads_of_several_threads_are_right(frozen: ports.Frozen) -> None:
    right = samples.content()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            offset = rng.randrange(SIZE)
            for _ in range(rng.randrange(1, 4)):
                length = min(rng.choice((1, 511, 4096, 200_000, 5 * MIB)), SIZE - offset)
                assert bytes(disk.pread(offset, length)) == right[offset : offset + length]
                offset += length

    with datastore.Datastore().open(frozen) as disk, concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
        assert bytes(disk.pread(SIZE, 0)) == b""
        for offset, length in ((0, SIZE + 1), (SIZE, 1), (-1, 2)):
            with pytest.raises(ValueError, match="beyond"):
                disk.pread(offset, length)


def test_reading_on_is_read_ahead_for_and_reading_here_and_there_is_not(lab: Lab, frozen: ports.Frozen) -> None:
    with datastore.Datastore().open(frozen) as disk:
        before = lab.state()["calls"]["GET /folder"]
        samples.whole(disk, 65536)
        assert lab.state()["calls"]["GET /folder"] - before < 14
        disk.pread(3 * MIB, 4096)
        disk.pread(7 * MIB, 4096)
        assert max(len(one.ahead) for one in disk._readers.values()) <= datastore.LARGEST  # type: ignore[attr-defined]
        assert len(disk._readers) <= 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "SeSparse"}, "sparse"),
        ({"kind": "Sparse"}, "sparse"),
        ({"kind": "RawVirtual"}, "raw device mapping"),
        ({"kind": "RawPhysical"}, "raw device mapping"),
        ({"kind": "Other"}, "not known"),
        ({"parent": "[ds1] web 1/web 1.vmdk"}, "stands on another file"),
        ({"datastore_type": "vsan"}, "type vsan"),
        ({"datastore_type": "VVOL"}, "type VVOL"),
        ({"datastore_type": ""}, "type unknown"),
        ({"datastore_type": "OTHER"}, "type OTHER"),
        ({"file": "web 1.vmdk"}, "not understood"),
    ],
)
def test_a_disk_whose_file_is_not_the_disk_is_refused(
    frozen: ports.Frozen, changes: dict[str, Any], words: str
) -> None:
    if "datastore_type" in changes:
        other = dataclasses.replace(frozen, **changes)
    else:
        other = samples.with_disk(frozen, **changes)
    assert words in (QUICK.refuses(other) or "")
    with pytest.raises(errors.SourceError, match=f"VM web 1: Hard disk 1: .*{words}"):
        QUICK.open(other)


@pytest.mark.parametrize(("kind", "local"), [("VMFS", False), ("NFS", False), ("NFS41", False), ("OTHER", True)])
def test_file_systems_that_keep_flat_files_are_read(frozen: ports.Frozen, kind: str, local: bool) -> None:
    other = dataclasses.replace(frozen, datastore_type=kind, datastore_local=local)
    assert QUICK.refuses(other) is None


def test_a_second_snapshot_makes_the_base_not_the_disk(session: sessions.Session, taken: Snapshot) -> None:
    with samples.snapshot(session) as second:
        reason = QUICK.refuses(second.frozen["Hard disk 1"])
        assert reason is not None and "another snapshot" in reason
        # Whoever says otherwise finds a descriptor that names its parent.
        lied = samples.with_disk(second.frozen["Hard disk 1"], parent=None, kind="Flat")
        with pytest.raises(descriptors.Unreadable, match=r"parent|only flat ones"):
            QUICK.open(lied)


def test_odd_names_are_read(lab: Lab, session: sessions.Session) -> None:
    lab.write(ODD, "Hard disk 1", 512, b"x" * 512)
    with samples.snapshot(session, ODD) as taken:
        (frozen,) = taken.frozen.values()
        with QUICK.open(frozen) as disk:
            assert samples.whole(disk) == (bytes(512) + b"x" * 512).ljust(65536, b"\0")


def test_every_byte_of_a_name_is_encoded() -> None:
    made = datastore.request("Fold/DC &1", "ds +1", "a b/ö%41?.vmdk")
    assert made == "/folder/a%20b/%C3%B6%2541%3F.vmdk?dcPath=Fold%2FDC%20%261&dsName=ds%20%2B1"
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(made).query)["dsName"] == ["ds +1"]


# -- descriptors -----------------------------------------------------------------------------------------------------


def described(*extents: str, parent: str = "ffffffff", more: str = "", kind: str = "vmfs") -> str:
    lines = ["# Disk DescriptorFile", "version=1", "CID=fffffffe", f"parentCID={parent}", f'createType="{kind}"']
    return "\n".join([*lines, "", "# Extent description", *extents, "", "# The Disk Data Base", "#DDB", more, ""])


def put(lab: Lab, files: dict[str, bytes]) -> None:
    folder = lab.folder / "datastores" / "DC0" / "ds1" / "made"
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_a_disk_in_several_files_is_one(lab: Lab, frozen: ports.Frozen) -> None:
    right = samples.content(3 * MIB, seed=9)
    text = described(
        f'RW {MIB // 512} FLAT "d f001.vmdk" 0',
        f'RW {MIB // 512} FLAT "d-f002.vmdk" 8',
        f'RW {MIB // 512} VMFS "d-f003.vmdk"',
    )
    files = {
        "d f001.vmdk": right[:MIB],
        "d-f002.vmdk": b"?" * 4096 + right[MIB : 2 * MIB],
        "d-f003.vmdk": right[2 * MIB :],
    }
    put(lab, {"d.vmdk": text.encode(), **files})
    with QUICK.open(samples.with_disk(frozen, file="[ds1] made/d.vmdk", size=3 * MIB)) as disk:
        assert samples.whole(disk, 700_001) == right
        assert bytes(disk.pread(MIB - 3, MIB + 6)) == right[MIB - 3 : 2 * MIB + 3]


FLAT = f'RW {MIB // 512} VMFS "x-flat.vmdk"'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (described(FLAT, parent="6a1b2c3d"), "names a parent"),
        (described(FLAT, more='parentFileNameHint="x.vmdk"'), "names a parent"),
        (described(FLAT).replace("parentCID=ffffffff\n", ""), "no parentCID"),
        (described(f'RW {MIB // 512} VMFSSPARSE "x-flat.vmdk"'), "only flat ones"),
        (described(f'RW {MIB // 512} SESPARSE "x-flat.vmdk"'), "only flat ones"),
        (described(f'RW {MIB // 512} VMFSRDM "x-flat.vmdk"'), "only flat ones"),
        (described(f"RW {MIB // 512} ZERO"), "only flat ones"),
        (described(f'NOACCESS {MIB // 512} FLAT "x-flat.vmdk" 0'), "only flat ones"),
        (described(f'RW {MIB // 512} VMFS "/vmfs/volumes/a/x-flat.vmdk"'), "beside its descriptor"),
        (described(f'RW {MIB // 512} VMFS ".."'), "beside its descriptor"),
        (described(f'RW {MIB // 512 - 1} VMFS "x-flat.vmdk"'), "the disk has 1048576"),
        (described(FLAT, FLAT), "describes 2097152 bytes"),
        (described(), "describes 0 bytes"),
        (described(FLAT, more='ddb.iofilters = "vmwarevmcrypt"'), "encrypted"),
        (described(FLAT, more='encryption.keySafe = "x"'), "encrypted"),
        (described(FLAT, "RW many FLAT"), "not known: RW many FLAT"),
        ("hello", "no descriptor"),
        ("", "no descriptor"),
        ("KDMV\udcff", "no text"),
        (described(FLAT, more="#" * (2 << 20)), "more than 1048576 bytes"),
        (described(f'RW {MIB // 512} VMFS "missing-flat.vmdk"'), "HTTP 404"),
        (described(f'RW {MIB // 512} VMFS "short-flat.vmdk"'), "has 1048064 bytes"),
        (described(f'RW {MIB // 512} VMFS "long-flat.vmdk"'), "has 1049088 bytes"),
    ],
)
def test_a_descriptor_that_says_anything_else_is_refused(lab: Lab, frozen: ports.Frozen, text: str, words: str) -> None:
    put(lab, {"x.vmdk": text.encode(errors="surrogateescape"), "x-flat.vmdk": bytes(MIB)})
    put(lab, {"short-flat.vmdk": bytes(MIB - 512), "long-flat.vmdk": bytes(MIB + 512)})
    with pytest.raises(errors.SourceError, match=words) as caught:
        QUICK.open(samples.with_disk(frozen, file="[ds1] made/x.vmdk", size=MIB))
    assert str(caught.value).startswith("VM web 1: Hard disk 1: [ds1] made/x.vmdk: ")


# -- what goes wrong on the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "http503", "count": 3},
        {"kind": "reset", "afterBytes": 100_000},
        {"kind": "reset", "afterBytes": 0},
        {"kind": "truncate", "afterBytes": 70_000, "count": 2},
        {"kind": "expire"},
        {"kind": "hang", "count": 1},
        {"kind": "slow", "seconds": 0.3},
    ],
    ids=lambda fault: fault["kind"],
)
def test_what_passes_is_repeated(lab: Lab, frozen: ports.Frozen, fault: dict[str, Any]) -> None:
    way = datastore.Datastore(patience=1.0, pauses=PAUSES) if fault["kind"] == "hang" else QUICK
    with way.open(frozen) as disk:
        right = samples.content()
        assert bytes(disk.pread(0, 65536)) == right[:65536]
        lab.fault(on="GET /folder", **fault)
        assert samples.whole(disk) == right
    lab.clear_faults()
    lab.fault(on="GET /folder", **fault)
    with way.open(frozen) as disk:
        assert samples.whole(disk) == right


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            {"kind": "http503", "message": "busy, come back"},
            "HTTP 503 Service Unavailable: busy, come back; asked 5 times",
        ),
        ({"kind": "reset", "afterBytes": 10}, "ended after 10 of 65536 bytes|reset by peer"),
        ({"kind": "truncate", "afterBytes": 10}, "ended after 10 of 65536 bytes; asked 5 times"),
        ({"kind": "hang"}, "did not answer in time"),
        ({"kind": "expire"}, "HTTP 401"),
    ],
    ids=lambda fault: fault["kind"] if isinstance(fault, dict) else "",
)
def test_what_stays_is_an_error_with_machine_disk_and_words(
    lab: Lab, frozen: ports.Frozen, fault: dict[str, Any], words: str
) -> None:
    hasty = datastore.Datastore(patience=0.3, pauses=PAUSES) if fault["kind"] == "hang" else QUICK
    with hasty.open(frozen) as disk:
        lab.fault(on="GET /folder", count=0, **fault)
        with pytest.raises(errors.SourceError, match=words) as caught:
            disk.pread(MIB, 65536)
        assert caught.value.retryable
        assert caught.value.message.startswith("VM web 1: Hard disk 1: [ds1] web 1/web 1.vmdk: ")
        lab.clear_faults()
        assert bytes(disk.pread(MIB, 65536)) == samples.content()[MIB : MIB + 65536], "and afterwards it goes on"


def test_a_locked_file_is_said_in_the_servers_words(lab: Lab, frozen: ports.Frozen) -> None:
    live = next(one["chain"][0] for one in lab.machine("web 1")["disks"] if one["label"] == "Hard disk 1")
    with datastore.Datastore(pauses=()).open(frozen) as disk:
        place = datastore.request("DC0", "ds1", f"web 1/{Path(live).name}")
        with pytest.raises(errors.SourceError, match=r"HTTP 500.*is locked by web 1"):
            disk._service.small(place, 100)  # type: ignore[attr-defined]


def test_a_file_that_changes_its_size_is_not_read_on(lab: Lab, frozen: ports.Frozen) -> None:
    put(lab, {"y.vmdk": described(f'RW {MIB // 512} VMFS "y-flat.vmdk"').encode(), "y-flat.vmdk": bytes(MIB)})
    with QUICK.open(samples.with_disk(frozen, file="[ds1] made/y.vmdk", size=MIB)) as disk:
        disk.pread(0, 4096)
        put(lab, {"y-flat.vmdk": bytes(MIB + 512)})
        with pytest.raises(errors.SourceError, match=r"bytes 8192-12287/1048576 were asked for.*/1049088"):
            disk.pread(8192, 4096)
        (lab.folder / "datastores" / "DC0" / "ds1" / "made" / "y-flat.vmdk").unlink()
        with pytest.raises(errors.SourceError, match="HTTP 404"):
            disk.pread(16384, 4096)


def test_a_wrong_authority_is_refused(lab: Lab, frozen: ports.Frozen) -> None:
    other = samples.session(lab, tls={"caFile": str(lab.other_ca_file)})
    with pytest.raises(certificates.Untrusted, match="not trusted"):
        QUICK.open(dataclasses.replace(frozen, session=other))


def test_work_that_was_asked_to_stop_stops_also_between_attempts(lab: Lab, frozen: ports.Frozen) -> None:
    meter = meters.Meter()
    with datastore.Datastore(pauses=(30.0,)).open(dataclasses.replace(frozen, meter=meter)) as disk:
        lab.fault(on="GET /folder", kind="http503", count=0)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(disk.pread, 0, 512)
            time.sleep(0.3)
            began = time.monotonic()
            meter.cancel()
            with pytest.raises(errors.Cancelled):
                waiting.result(5)
            assert time.monotonic() - began < 2


def test_closing_ends_what_hangs(lab: Lab, frozen: ports.Frozen) -> None:
    disk = datastore.Datastore(patience=60).open(frozen)
    lab.fault(on="GET /folder", kind="hang", count=0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(disk.pread, 0, 512)
        time.sleep(0.3)
        disk.close()
        disk.close()
        with pytest.raises(errors.SourceError):
            waiting.result(5)
        with pytest.raises(errors.SourceError, match="closed"):
            disk.pread(MIB, 512)


def test_a_vcenter_that_dies_is_an_error_and_one_that_came_back_is_read(tmp_path: Path) -> None:
    with samples.peer(tmp_path) as lab:
        session = samples.session(lab)
        with samples.snapshot(session) as taken, QUICK.open(taken.frozen["Hard disk 1"]) as disk:
            disk.pread(0, 512)
            lab.crash()
            with pytest.raises(errors.SourceError, match=r"VM web 1: Hard disk 1: .*Connection refused"):
                disk.pread(MIB, 512)
            lab.restart()
            session.renew()
            assert samples.whole(disk) == samples.content()
        session.logout()


BIG = """
import resource, sys, json
sys.path.insert(0, "tests/vsphere")
import transport_samples as samples
from reconciler.api import vcenters
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.transports import datastore
vcenter = vcenters.VCenter.model_validate(json.loads(sys.argv[1]))
session = sessions.Session(vcenter.name, vcenter.spec)
with samples.snapshot(session, "large") as taken:
    (frozen,) = taken.frozen.values()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with datastore.Datastore().open(frozen) as disk:
        for offset in range(0, disk.size, 1 << 20):
            disk.pread(offset, 1 << 20)
    assert disk.size == 1 << 30
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
session.logout()
"""


def test_memory_does_not_grow_with_the_disk(lab: Lab) -> None:
    command = [sys.executable, "-c", BIG, lab.vcenter_yaml()]
    done = subprocess.run(command, cwd=samples.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40 * 1024, "KiB more than before the disk was opened"
