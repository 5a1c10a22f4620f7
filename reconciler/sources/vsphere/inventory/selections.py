"""Which machines a policy means: include and exclude over values, without asking anybody.

What an entry names and a machine does not show, such as the folder that the user may not see, makes the answer unknown,
and unknown is neither yes nor no: a machine that nobody can place must not be left out of its backups in silence.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from reconciler.api import vcenters

_STATES: Final = {"On": "poweredOn", "Off": "poweredOff", "Suspended": "suspended"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What a selection may ask of a machine. None: there is such a thing, and it is not shown."""

    name: str | None
    #: Path of its folder, such as ``/DC0/vm/gold``.
    folder: str | None
    datacenter: str | None
    #: Empty for a host that is in no cluster.
    cluster: str | None
    host: str | None
    #: Names of its datastores.
    datastores: tuple[str, ...] | None
    #: Empty for a template, which is in none.
    resource_pool: str | None
    #: The API's word, such as ``poweredOn``.
    power: str | None
    #: ``category/name`` of each; None where nobody asked.
    tags: tuple[str, ...] | None = None
    #: Custom attributes; None where nobody asked.
    attributes: Mapping[str, str] | None = None


def asks_attributes(entries: Iterable[vcenters.MachineMatch]) -> bool:
    """Whether custom attributes must be known to decide."""
    return any(entry.attributes for entry in entries)


def selected(
    traits: Traits, include: Sequence[vcenters.MachineMatch], exclude: Sequence[vcenters.MachineMatch]
) -> bool | None:
    """Whether a machine is included and not excluded; None if that hangs on what it does not show."""
    wanted = _any(matches(traits, entry) for entry in include)
    if wanted is False:
        return False
    unwanted = _any(matches(traits, entry) for entry in exclude)
    if unwanted is True:
        return False
    return True if wanted and unwanted is False else None


def unknown(traits: Traits, entries: Iterable[vcenters.MachineMatch]) -> tuple[str, ...]:
    """What entries name and this machine does not show, in the words of the manifest."""
    return tuple(
        dict.fromkeys(key for entry in entries for key, answer in _answers(traits, entry).items() if answer is None)
    )


def matches(traits: Traits, entry: vcenters.MachineMatch) -> bool | None:
    """Whether everything that an entry names holds; None if that hangs on what the machine does not show.

    An entry that names nothing matches nothing.
    """
    answers = _answers(traits, entry).values()
    if not answers or any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


def within(folder: str, glob: str) -> bool:
    """Whether a folder, or one that it lies in, matches the glob. A star matches slashes too."""
    glob = glob.rstrip("/") or "/"
    parts = folder.strip("/").split("/")
    return any(fnmatch.fnmatchcase("/" + "/".join(parts[:depth]), glob) for depth in range(1, len(parts) + 1))


def tagged(tag: str, glob: str) -> bool:
    """Whether ``category/name`` matches; a glob without a slash is one over names of any category."""
    if "/" in glob:
        return fnmatch.fnmatchcase(tag, glob)
    return fnmatch.fnmatchcase(tag.partition("/")[2], glob)


def _answers(traits: Traits, entry: vcenters.MachineMatch) -> dict[str, bool | None]:
    """The answer to everything that the entry names."""
    answers: dict[str, bool | None] = {}
    for key, value, glob in (
        ("name", traits.name, entry.name),
        ("datacenter", traits.datacenter, entry.datacenter),
        ("cluster", traits.cluster, entry.cluster),
        ("host", traits.host, entry.host),
        ("resourcePool", traits.resource_pool, entry.resource_pool),
    ):
        if glob is not None:
            answers[key] = None if value is None else fnmatch.fnmatchcase(value, glob)
    if entry.folder is not None:
        answers["folder"] = None if traits.folder is None else within(traits.folder, entry.folder)
    if entry.datastore is not None:
        stores = traits.datastores
        answers["datastore"] = None if stores is None else any(fnmatch.fnmatchcase(n, entry.datastore) for n in stores)
    if entry.tag is not None:
        answers["tag"] = None if traits.tags is None else any(tagged(tag, entry.tag) for tag in traits.tags)
    for name, glob in entry.attributes.items():
        known = traits.attributes
        value = known.get(name) if known is not None else None
        answers[f"attributes.{name}"] = (
            None if known is None else value is not None and fnmatch.fnmatchcase(value, glob)
        )
    if entry.power_state is not None:
        answers["powerState"] = None if traits.power is None else traits.power == _STATES[entry.power_state]
    return answers


def _any(answers: Iterable[bool | None]) -> bool | None:
    seen = set(answers)
    if True in seen:
        return True
    return None if None in seen else False
