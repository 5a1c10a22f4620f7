"""An estate and a catalog as months of nightly backups leave them; called by ``hack/make-catalog``, benches and tests.

What is few (configuration, clients, units) goes through the product's own functions, at the times at which it would
have happened; images, copies and the last nights' jobs are written many at a time (``catalog_rows``), night by night,
so that rows lie in the file as they would.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import math
import random
import sys
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from pathlib import Path

import catalog_rows as rows
import sqlalchemy as sa

from reconciler.base import times
from reconciler.catalog import counters, database, imports, inventories, servers, tables
from reconciler.controller import observations, passes
from reconciler.planning import configuration, desired
from reconciler.storage import opening

ACTOR = "controller"
ZONE = zoneinfo.ZoneInfo("Europe/Berlin")
SLOT = dt.time(21)
SIZE = 64 << 10
#: How long after its slot a night's last backup is frozen, at most.
SPREAD = dt.timedelta(hours=2)
#: Ages of series relative to the mean: machines came in so many waves.
WAVES = (1.5, 1.35, 1.2, 1.05, 0.95, 0.8, 0.65, 0.5)
#: Of the oldest wave, one series in so many has copies that are due to go.
OVERDUE = 12
#: With fewer images a machine nothing is due to go.
FEW = 10
DAY = dt.timedelta(days=1)
NIGHTS_AT_ONCE = 10
UNITS = {"fast": "Directory", "pool": "DedupePool", "offsite": "Directory"}

ESTATE = """\
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: fast}}
spec: {{type: Directory, path: units/fast, maxConcurrentJobs: 10, failureDomain: rack-1}}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: pool}}
spec: {{type: DedupePool, path: units/pool, maxConcurrentJobs: 10, failureDomain: rack-2}}
---
apiVersion: holdfast/v1alpha1
kind: StorageUnit
metadata: {{name: offsite}}
spec: {{type: Directory, path: units/offsite, maxConcurrentJobs: 4, failureDomain: site-2}}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: gold}}
spec:
  operations:
    - name: land
      type: Backup
      storage: fast
      retention: {{type: Keep, daily: {daily}, weekly: 8, timeZone: Europe/Berlin}}
    - name: dedupe
      type: Duplication
      source: land
      storage: pool
      retention: {{type: Keep, daily: {daily}, weekly: 8, monthly: 12, yearly: 5, timeZone: Europe/Berlin}}
    - name: away
      type: Duplication
      source: dedupe
      storage: offsite
      retention: {{type: Keep, daily: {daily}, weekly: 26, monthly: 36, yearly: 10, timeZone: Europe/Berlin}}
---
apiVersion: holdfast/v1alpha1
kind: StorageLifecyclePolicy
metadata: {{name: silver}}
spec:
  operations:
    - name: land
      type: Backup
      storage: fast
      retention: {{type: Keep, daily: {daily}, weekly: 8, timeZone: Europe/Berlin}}
    - name: dedupe
      type: Duplication
      source: land
      storage: pool
      retention: {{type: Keep, daily: {daily}, weekly: 8, monthly: 12, timeZone: Europe/Berlin}}
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: gold-machines, labels: {{tier: gold}}}}
spec:
  source: {{diskImages: {{path: machines, machines: "gold-*"}}}}
  schedules:
    - {{name: weekly-full, type: Full, cron: "0 21 * * Sat", timeZone: Europe/Berlin}}
    - {{name: nightly, type: Incremental, cron: "0 21 * * Sun-Fri", timeZone: Europe/Berlin}}
  lifecycle: gold
---
apiVersion: holdfast/v1alpha1
kind: BackupPolicy
metadata: {{name: silver-machines, labels: {{tier: silver}}}}
spec:
  source: {{diskImages: {{path: machines, machines: "silver-*"}}}}
  schedules:
    - {{name: weekly-full, type: Full, cron: "0 21 * * Sat", timeZone: Europe/Berlin}}
    - {{name: nightly, type: Incremental, cron: "0 21 * * Sun-Fri", timeZone: Europe/Berlin}}
  lifecycle: silver
"""


@dataclasses.dataclass(slots=True)
class Series:
    """One machine and what its nights need to know."""

    name: str
    tier: str
    wave: int
    #: How many nights ago it was backed up first, the last one being 0, plus 1.
    age: int
    client: str = ""
    slug: str = ""
    newest: str | None = None
    inode: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is to be made."""

    clients: int
    images: int
    estate: Path
    state: Path
    catalog: str
    now: dt.datetime
    seed: int = 1
    #: Of how many of the last nights jobs and audit lines are kept; no decision reads those of older ones.
    job_nights: int = 3
    #: Whether nothing at all is due to go.
    settled: bool = False


def make(wish: Wish) -> None:
    """Make the estate and the catalog. Raises ``SystemExit`` for folders in use or numbers that do not fit."""
    if wish.clients < 1 or wish.images < wish.clients:
        raise SystemExit("make-catalog: at least one client, and an image for each")
    nights = slots(wish.now)
    machines = plan_series(wish)
    daily = max(one.age for one in machines)
    if wish.images >= FEW * wish.clients and not wish.settled:
        for one in [one for one in machines if one.wave == 0][::OVERDUE]:
            one.age = daily + 1
    level(machines, wish.images, daily)
    write_estate(wish.estate, machines, daily)
    oldest = max(one.age for one in machines)
    slot_of = [next(nights) for _ in range(oldest + 1)]
    with contextlib.closing(database.open_writing(wish.catalog)) as db:
        with db.reading() as connection:
            if connection.scalar(sa.select(sa.func.count()).select_from(tables.OBJECTS)):
                raise SystemExit(f"make-catalog: {wish.catalog} is in use; name another folder or database")
        wanted = configure(wish, db, machines, slot_of)
        Nights(wish, db, wanted, machines, slot_of).write()


def slots(now: dt.datetime) -> Iterator[dt.datetime]:
    """The nightly slots whose backups are over, newest first."""
    local = now.astimezone(ZONE)
    day = local.date()
    if dt.datetime.combine(day, SLOT, ZONE) + dt.timedelta(minutes=2) > local:
        day -= DAY
    while True:
        yield dt.datetime.combine(day, SLOT, ZONE).astimezone(dt.UTC)
        day -= DAY


def plan_series(wish: Wish) -> list[Series]:
    """The machines, in waves of different age."""
    mean = wish.images / wish.clients
    result = []
    for number in range(wish.clients):
        tier = ("gold", "silver")[number % 2]
        wave = number * len(WAVES) // wish.clients
        age = max(1, round(mean * WAVES[wave]))
        result.append(Series(name=f"{tier}-{number // 2 + 1:05d}", tier=tier, wave=wave, age=age))
    return result


def level(machines: list[Series], images: int, most: int) -> None:
    """Make the ages add up to ``images``, in both tiers alike, by a night or a few for some."""
    for tier in {one.tier for one in machines}:
        mine = [one for one in machines if one.tier == tier]
        share = images * len(mine) / len(machines)
        left = (math.ceil(share) if tier == "gold" else math.floor(share)) - sum(one.age for one in mine)
        step = 1 if left > 0 else -1
        while left:
            movable = [one for one in mine if one.age <= most and 1 <= one.age + step <= most]
            if not movable:
                raise SystemExit("make-catalog: so few images cannot be spread over so many machines")
            for one in movable[:: max(1, len(movable) // abs(left))][: abs(left)]:
                one.age += step
                left -= step


def write_estate(estate: Path, machines: Sequence[Series], daily: int) -> None:
    """Manifests, a folder with a small disk for each machine, empty folders for the units."""
    if (estate / "estate.yaml").exists():
        raise SystemExit(f"make-catalog: {estate} holds an estate; name another folder")
    for name in UNITS:
        (estate / "units" / name).mkdir(parents=True)
    (estate / "estate.yaml").write_text(ESTATE.format(daily=daily))
    for one in machines:
        folder = estate / "machines" / one.name
        folder.mkdir(parents=True)
        with (folder / "system.img").open("wb") as disk:
            disk.truncate(SIZE)


def configure(
    wish: Wish, db: database.Database, machines: Sequence[Series], slot_of: Sequence[dt.datetime]
) -> desired.Desired:
    """The revision in force, the units with their identity, and every machine seen when its wave came."""
    tree = passes.read_tree(wish.estate, None)
    if not tree.valid:
        raise SystemExit("make-catalog: " + "\n".join(map(str, tree.problems)))
    begun = slot_of[-1] - DAY
    inventories.apply_configuration(
        db,
        revision=tree.wanted.revision,
        objects=list(tree.wanted.objects()),
        changes=configuration.changes(tree.wanted, {}),
        now=begun,
        actor=ACTOR,
    )
    for name, declared in observations.declared_units(tree.wanted).items():
        identity = opening.prepare(declared, db.id)
        known = inventories.KnownUnit(name=name, id=identity.id, type=identity.type, path=str(declared.path))
        inventories.learn_unit(db, known, begun, ACTOR)
    surveyed = observations.survey(tree.wanted, {}, wish.now)
    wave_of = {one.name: one.wave for one in machines}
    first = {wave: max((one.age for one in machines if one.wave == wave), default=0) for wave in set(wave_of.values())}
    for wave in sorted(first):
        at = slot_of[first[wave] - 1] - dt.timedelta(hours=9)
        for policy, inventory in surveyed.items():
            there = [machine for machine in inventory.machines if wave_of[machine.name] <= wave]
            inventories.see_machines(db, policy, there, at)
    for policy, inventory in surveyed.items():
        inventories.see_machines(db, policy, inventory.machines, inventory.seen)
    by_name = {client.name: client for client in inventories.clients(db).values()}
    for one in machines:
        one.client, one.slug = by_name[one.name].id, by_name[one.name].slug
        one.inode = (wish.estate / "machines" / one.name / "system.img").stat().st_ino
    return tree.wanted


class Nights:
    """Every backup since the estate began, oldest night first."""

    def __init__(
        self,
        wish: Wish,
        db: database.Database,
        wanted: desired.Desired,
        machines: Sequence[Series],
        slot_of: Sequence[dt.datetime],
    ) -> None:
        self._wish = wish
        self._db = db
        self._wanted = wanted
        self._machines = machines
        self._slots = slot_of
        self._dice = random.Random(wish.seed)
        self._sequence = 0
        self._job = 1
        self._owed: dict[str, str] = {}
        self._steps = {
            name: [
                rows.Step(operation=one.name, unit=one.storage, chained=UNITS[one.storage] == "Directory")
                for one in lifecycle.spec.operations
            ]
            for name, lifecycle in wanted.lifecycles.items()
        }

    def write(self) -> None:
        """All nights, and what the catalog counts."""
        with self._db.writing() as connection:
            for name, lifecycle in self._wanted.lifecycles.items():
                self._owed[name] = imports.remember_owed(connection, lifecycle.spec.written())
        ages = range(len(self._slots) - 1, -1, -1)
        for first in range(0, len(ages), NIGHTS_AT_ONCE):
            with self._db.writing() as connection:
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA cache_size=-400000")
                for ago in ages[first : first + NIGHTS_AT_ONCE]:
                    self._night(connection, ago)
        with self._db.writing() as connection:
            counters.raise_to(connection, counters.IMAGE_SEQUENCE, self._sequence)
            if self._db.shared:
                servers.count_on(connection)
                # What a server does by itself within a minute: its plans go by what it knows of the tables.
                connection.exec_driver_sql("ANALYZE")

    def _night(self, connection: sa.Connection, ago: int) -> None:
        slot = self._slots[ago]
        spread = min(SPREAD, (self._wish.now - slot) / 2) / (len(self._machines) + 1)
        made = []
        for place, one in enumerate(self._machines):
            if one.age > ago:
                made.append(self._backup(one, ago, slot, slot + (place + self._dice.random()) * spread))
        rows.insert(connection, tables.IMAGES, [rows.image(one) for one in made])
        rows.insert(connection, tables.COPIES, [row for one in made for row in rows.copies(one)])
        if ago < self._wish.job_nights:
            rows.insert(connection, tables.JOBS, [row for one in made for row in rows.work(one)])
            lines = sorted(row for one in made for row in rows.trail(one, ACTOR))
            rows.insert(connection, tables.AUDIT, lines)

    def _backup(self, one: Series, ago: int, slot: dt.datetime, frozen: dt.datetime) -> rows.Night:
        policy = self._wanted.policies[f"{one.tier}-machines"]
        saturday = slot.astimezone(ZONE).weekday() == 5
        type = "Full" if saturday or one.newest is None else "Incremental"
        lifecycle = policy.spec.lifecycle
        steps = self._steps[lifecycle]
        self._sequence += 1
        at = rows.number(frozen)
        night = rows.Night(
            image=f"{one.slug}-{frozen:%Y%m%dT%H%M%SZ}-{self._dice.getrandbits(24):06x}",
            client=one.client,
            slug=one.slug,
            policy=policy.name,
            schedule="weekly-full" if saturday else "nightly",
            lifecycle=lifecycle,
            owed=self._owed[lifecycle],
            type=type,
            parent=one.newest if type == "Incremental" else None,
            revision=self._wanted.revision,
            slot=rows.number(slot),
            frozen=at,
            done=at + 5_000_000,
            sequence=self._sequence,
            job=self._job,
            size=SIZE,
            stored=SIZE + 32 if type == "Full" else 4128,
            digest=f"{self._dice.getrandbits(256):064x}",
            blake3=f"{self._dice.getrandbits(256):064x}",
            inode=one.inode,
            remembered=ago < 3 or (type == "Full" and ago < 21),
            steps=steps,
        )
        one.newest = night.image
        self._job += len(steps)
        return night


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hack/make-catalog", description=__doc__)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--estate", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--catalog", help="a postgresql:// URL; by default catalog.sqlite in the state folder")
    parser.add_argument("--now", type=times.parse, help="the moment after the last night; by default now")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--job-nights", type=int, default=3)
    parser.add_argument("--settled", action="store_true", help="let nothing be due to go")
    chosen = parser.parse_args(arguments)
    estate, state = chosen.estate.resolve(), chosen.state.resolve()
    estate.mkdir(parents=True, exist_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    now = chosen.now or dt.datetime.now(dt.UTC).replace(microsecond=0)
    began = time.monotonic()
    make(
        Wish(
            clients=chosen.clients,
            images=chosen.images,
            estate=estate,
            state=state,
            catalog=chosen.catalog or str(state / "catalog.sqlite"),
            now=now,
            seed=chosen.seed,
            job_nights=chosen.job_nights,
            settled=chosen.settled,
        )
    )
    print(f"{chosen.images:,} images of {chosen.clients:,} machines in {time.monotonic() - began:.0f} s")
    print(f"HOLDFAST_TEST=1 HOLDFAST_CLOCK={times.show(now)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
