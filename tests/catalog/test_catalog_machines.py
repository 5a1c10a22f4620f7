"""Machines are known for ever by the slug of their first sight; units by the identity of their first use."""

from __future__ import annotations

import catalog_samples as samples
import pytest

from reconciler.base import errors
from reconciler.catalog import audits, database, inventories
from reconciler.planning import observed


def slugs(db: database.Database) -> dict[str, str]:
    """Slug by name."""
    return {one.name: one.slug for one in inventories.clients(db).values()}


def test_a_machine_gets_its_slug_at_first_sight_and_keeps_it(db: database.Database) -> None:
    samples.see(db, "oblVM1")
    renamed = samples.machine("oblVM1", name="erp-database")
    inventories.see_machines(db, "obl", [renamed], samples.later(days=1))
    (client,) = inventories.clients(db).values()
    assert client == observed.Client(
        id=renamed.id, slug="oblvm1", name="erp-database", source=renamed.source, first_seen=samples.NOW
    )


def test_machines_whose_names_look_alike_get_slugs_of_their_own(db: database.Database) -> None:
    names = ["Web Server", "web-server", "WEB_SERVER", "Österreich", "日本", "x" * 200]
    samples.see(db, *names)
    found = slugs(db)
    assert found["Web Server"] == "web-server"
    assert {found["web-server"], found["WEB_SERVER"]} == {"web-server-2", "web-server-3"}
    assert found["Österreich"] == "osterreich"
    assert len(found["x" * 200]) == 48
    assert len(set(found.values())) == len(names)
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and slug for slug in found.values())


def test_the_last_inventory_of_each_policy_is_kept_with_its_time(db: database.Database) -> None:
    troubled = samples.machine("oblVM2", disks=(), problem=("NoDisks", "the folder holds no disk"))
    inventories.see_machines(db, "obl", [samples.machine("oblVM1"), troubled], samples.NOW)
    inventories.see_machines(db, "web", [samples.machine("oblVM1")], samples.NOW)
    inventories.see_machines(db, "web", [], samples.later(hours=1))
    assert inventories.inventories(db) == {
        "obl": observed.Inventory(machines=(samples.machine("oblVM1"), troubled), seen=samples.NOW),
        "web": observed.Inventory(machines=(), seen=samples.later(hours=1)),
    }
    assert len(inventories.clients(db)) == 2, "a machine that is gone is still known"


def test_seeing_the_same_again_writes_nothing(location: str) -> None:
    db = database.open_writing(location)
    samples.see(db, "oblVM1", "oblVM2")
    reader = database.open_reading(location)
    assert reader is not None
    version = "SELECT xmin || ' ' || ctid FROM inventories" if db.shared else "PRAGMA data_version"
    with reader.reading() as connection:
        before = connection.exec_driver_sql(version).scalar()
    samples.see(db, "oblVM1", "oblVM2")
    with reader.reading() as connection:
        assert connection.exec_driver_sql(version).scalar() == before
    reader.close()
    db.close()


def test_two_machines_that_claim_one_identity_do_not_take_turns(db: database.Database) -> None:
    twins = [samples.machine("oblVM1"), samples.machine("oblVM1", name="clone")]
    inventories.see_machines(db, "obl", twins, samples.NOW)
    count = len(audits.entries(db))
    inventories.see_machines(db, "obl", twins, samples.later(hours=1))
    assert slugs(db) == {"oblVM1": "oblvm1"}
    assert len(audits.entries(db)) == count
    assert inventories.inventories(db)["obl"].machines == tuple(twins), "the plan sees both"


def test_nor_do_they_where_two_policies_show_them(db: database.Database) -> None:
    here, there = samples.machine("oblVM1"), samples.machine("oblVM1", name="clone", source="elsewhere")
    inventories.see_machines(db, "obl", [here], samples.NOW)
    count = len(audits.entries(db))
    for hour in (1, 2):
        for policy, one in (("obl", here), ("web", there)):
            assert not inventories.see_machines(db, policy, [one], samples.later(hours=hour), {here.id})
    assert len(audits.entries(db)) == count
    assert inventories.clients(db)[here.id].name == "oblVM1"
    assert inventories.inventories(db)["web"].machines == (there,)


def test_a_client_is_found_by_slug_id_or_name(db: database.Database) -> None:
    samples.see(db, "Web Server", "oblVM1")
    for text in ("web-server", "Web Server", samples.machine("Web Server").id):
        assert inventories.find_client(db, text).name == "Web Server"
    with pytest.raises(errors.NotFound, match=r"did you mean .*oblvm1"):
        inventories.find_client(db, "oblvm11")
    with pytest.raises(errors.NotFound, match="get clients"):
        inventories.find_client(db, "nothing like it")


def test_an_ambiguous_name_lists_the_slugs(db: database.Database) -> None:
    twins = [samples.machine("twin"), samples.machine("twin", id="other", source="other")]
    inventories.see_machines(db, "obl", [*twins, samples.machine("Twins")], samples.NOW)
    assert inventories.find_client(db, "twin").slug == "twin", "a slug is never ambiguous"
    inventories.see_machines(db, "obl", [samples.machine(x, name="Same") for x in ("a", "b")], samples.NOW)
    with pytest.raises(errors.NotFound, match=r"2 clients are named Same.*same, same-2"):
        inventories.find_client(db, "Same")


def unit(name: str = "fast", id: str = "u-1", path: str = "/srv/fast") -> inventories.KnownUnit:
    """A Directory unit."""
    return inventories.KnownUnit(name=name, id=id, type="Directory", path=path)


def test_a_unit_is_learned_once_and_may_move(db: database.Database) -> None:
    for _ in range(2):
        inventories.learn_unit(db, unit(), samples.NOW, "tester")
    assert len(audits.entries(db)) == 1
    inventories.learn_unit(db, unit(path="/mnt/fast"), samples.NOW, "tester")
    assert inventories.known_units(db) == {"fast": unit(path="/mnt/fast")}
    assert [entry.object for entry in audits.entries(db)] == ["StorageUnit/fast"] * 2


def test_a_unit_is_not_mistaken_for_another(db: database.Database) -> None:
    inventories.learn_unit(db, unit(), samples.NOW, "tester")
    with pytest.raises(errors.CatalogError, match="mount the right file system"):
        inventories.learn_unit(db, unit(id="u-2"), samples.NOW, "tester")
    with pytest.raises(errors.CatalogError, match=r"known as fast.*previousNames: \[fast\]"):
        inventories.learn_unit(db, unit(name="quick"), samples.NOW, "tester")
    assert inventories.known_units(db) == {"fast": unit()}
