"""Which machines a policy means, and whose snapshot one is: values in, values out."""

from __future__ import annotations

import datetime as dt
import fnmatch
import itertools
import uuid
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from reconciler.api import vcenters
from reconciler.sources.vsphere.inventory import marks, selections, tags

MOMENT = dt.datetime(2026, 11, 23, 21, 0, 5, tzinfo=dt.UTC)
#: Everything that an entry may name, with a word that fits ``traits()`` and one that does not.
KEYS = {
    "name": ("oblVM*", "obl"),
    "folder": ("/DC0/vm/gold", "/DC0/vm/silver"),
    "datacenter": ("DC?", "dc?"),
    "cluster": ("C0", "C1"),
    "host": ("esx1*", "esx2*"),
    "datastore": ("ds[12]", "ds[34]"),
    "resourcePool": ("Res*", "res*"),
    "tag": ("backup/gold", "backup/silver"),
    "attributes": ({"owner": "erp-*"}, {"owner": "crm-*"}),
    "powerState": ("On", "Off"),
}


def traits(**changed: Any) -> selections.Traits:
    """A machine like any other."""
    known: dict[str, Any] = {
        "name": "oblVM1", "folder": "/DC0/vm/gold/erp", "datacenter": "DC0", "cluster": "C0", "host": "esx1.example",
        "datastores": ("ds1", "iso"), "resource_pool": "Resources", "power": "poweredOn",
        "tags": ("backup/gold",), "attributes": {"owner": "erp-team"},
    }  # fmt: skip
    return selections.Traits(**{**known, **changed})


def entry(**named: Any) -> vcenters.MachineMatch:
    return vcenters.MachineMatch.model_validate(named)


@pytest.mark.parametrize("key", KEYS)
def test_each_key_decides(key: str) -> None:
    fits, fits_not = KEYS[key]
    assert selections.matches(traits(), entry(**{key: fits})) is True
    assert selections.matches(traits(), entry(**{key: fits_not})) is False


def test_keys_of_one_entry_must_all_hold() -> None:
    for right, wrong in itertools.permutations(KEYS, 2):
        assert selections.matches(traits(), entry(**{right: KEYS[right][0], wrong: KEYS[wrong][0]})) is True
        assert selections.matches(traits(), entry(**{right: KEYS[right][0], wrong: KEYS[wrong][1]})) is False


def test_one_entry_of_several_is_enough_and_exclude_wins() -> None:
    include = [entry(name="nobody"), entry(folder="/DC0/vm/gold")]
    assert selections.selected(traits(), include, []) is True
    assert selections.selected(traits(), include, [entry(name="x"), entry(tag="gold")]) is False
    assert selections.selected(traits(), [], []) is False


def test_an_empty_entry_matches_nothing() -> None:
    assert selections.matches(traits(), entry()) is False


@pytest.mark.parametrize(
    ("folder", "glob", "within"),
    [
        ("/DC0/vm/gold", "/DC0/vm/gold", True),
        ("/DC0/vm/gold", "/DC0/vm/gold/", True),
        ("/DC0/vm/gold/erp/db", "/DC0/vm/gold", True),
        ("/DC0/vm/golden", "/DC0/vm/gold", False),
        ("/DC0/vm", "/DC0/vm/gold", False),
        ("/DC0/vm/gold", "/*/vm/gold", True),
        ("/DC0/vm/Gold", "/DC0/vm/gold", False),
        ("/Europe/DC0/vm", "/Europe", True),
        ("/DC0/vm/a/gold", "*/gold", True),
    ],
)
def test_a_folder_holds_what_lies_below_it(folder: str, glob: str, within: bool) -> None:
    assert selections.within(folder, glob) is within


def test_a_tag_without_a_category_is_one_of_any() -> None:
    assert selections.tagged("backup/gold", "gold")
    assert selections.tagged("tier/gold", "g*")
    assert not selections.tagged("gold/silver", "gold")
    assert selections.tagged("backup/gold", "backup/*")
    assert not selections.tagged("Backup/gold", "backup/gold")


def test_an_attribute_that_is_not_set_matches_nothing() -> None:
    assert selections.matches(traits(attributes={}), entry(attributes={"owner": "*"})) is False


def test_what_is_not_shown_is_neither_yes_nor_no() -> None:
    hidden = traits(host=None)
    assert selections.selected(hidden, [entry(host="esx1*")], []) is None
    assert selections.selected(hidden, [entry(name="*")], [entry(host="esx1*")]) is None
    # What the rest decides, it decides.
    assert selections.selected(hidden, [entry(host="esx1*", name="other")], []) is False
    assert selections.selected(hidden, [entry(host="esx1*"), entry(name="obl*")], []) is True
    assert selections.selected(hidden, [entry(host="esx1*")], [entry(name="obl*")]) is False
    assert selections.unknown(hidden, [entry(host="esx1*", name="*")]) == ("host",)


@st.composite
def _entries(draw: st.DrawFn) -> vcenters.MachineMatch:
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
    return entry(**{key: draw(st.sampled_from(KEYS[key])) for key in keys})


#: Fields whose hiding makes an answer unknown.
_HIDDEN = {"folder": "folder", "cluster": "cluster", "host": "host", "datastores": "datastore", "tags": "tag"}


@hypothesis.given(
    st.lists(_entries(), max_size=3), st.lists(_entries(), max_size=3), st.sets(st.sampled_from(sorted(_HIDDEN)))
)
def test_hiding_something_never_turns_yes_into_no(
    include: list[vcenters.MachineMatch], exclude: list[vcenters.MachineMatch], hidden: set[str]
) -> None:
    whole = selections.selected(traits(), include, exclude)
    part = selections.selected(traits(**dict.fromkeys(hidden)), include, exclude)
    assert whole is not None
    assert part in (whole, None)
    if part is None:
        assert selections.unknown(traits(**dict.fromkeys(hidden)), [*include, *exclude])


_NAMES = st.text(st.sampled_from("ab/*?[]!é"), min_size=1, max_size=6)


@hypothesis.given(_NAMES, _NAMES)
def test_names_match_as_globs_that_mind_case(name: str, glob: str) -> None:
    assert selections.matches(traits(name=name), entry(name=glob)) is fnmatch.fnmatchcase(name, glob)


@hypothesis.given(_NAMES.filter(lambda name: "/" not in name), _NAMES, _NAMES)
def test_no_category_is_passed_over_whose_tags_could_match(category: str, name: str, glob: str) -> None:
    if selections.tagged(f"{category}/{name}", glob):
        assert tags._may_hold(category, glob)


# -- marks ---------------------------------------------------------------------------------------------------------------


def mark(**changed: Any) -> marks.Mark:
    known: dict[str, Any] = {"owner": str(uuid.uuid4()), "id": str(uuid.uuid4()), "job": "j-000123", "made": MOMENT}
    return marks.Mark(**{**known, **changed})


def test_a_mark_is_read_as_it_was_written() -> None:
    made = mark()
    text = marks.describe(made)
    assert text == (
        f"holdfast owner={made.owner} id={made.id} job=j-000123 made=2026-11-23T21:00:05Z"
        "; removed by Holdfast when its backup ends"
    )
    assert "\n" not in text
    assert marks.parse(text) == made
    assert marks.parse(f" {text}\n") == made
    assert marks.name("j-000123") == "holdfast-j-000123"


@pytest.mark.parametrize("changed", [{"job": "j 1"}, {"owner": ""}, {"id": "x"}, {"job": "a\nb"}, {"job": "x" * 90}])
def test_a_mark_that_could_not_be_read_is_not_written(changed: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not a mark"):
        marks.describe(mark(**changed))


@hypothesis.given(st.text(max_size=500) | st.none())
def test_other_descriptions_are_no_marks(text: str | None) -> None:
    assert marks.parse(text) is None


@hypothesis.given(st.data())
def test_a_mark_that_somebody_altered_is_another_one_or_none(data: st.DataObject) -> None:
    made = mark()
    text = marks.describe(made)
    place = data.draw(st.integers(0, len(text) - 1))
    altered = text[:place] + data.draw(st.text(max_size=3)) + text[place + data.draw(st.integers(0, 3)) :]
    found = marks.parse(altered)
    if altered.strip(" \r\n\t") != text:
        assert found != made


@pytest.mark.parametrize(
    "hostile",
    [
        "holdfast owner=me; DROP id=x",
        "please keep: "
        "holdfast owner=a id=00000000-0000-0000-0000-000000000000 job=j made=2026-01-01T00:00:00Z; removed by Holdfast when its backup ends",
        "holdfast owner=a id=00000000-0000-0000-0000-000000000000 job=j made=2026-13-41T00:00:00Z; removed by Holdfast when its backup ends",
        "holdfast owner=a id=00000000-0000-0000-0000-000000000000 job=j made=٢٠٢٦-01-01T00:00:00Z; removed by Holdfast when its backup ends",
        "holdfast owner=a\nid=00000000-0000-0000-0000-000000000000 job=j made=2026-01-01T00:00:00Z; removed by Holdfast when its backup ends",
        "holdfast " * 100_000,
    ],
)
def test_hostile_descriptions_are_no_marks(hostile: str) -> None:
    assert marks.parse(hostile) is None
