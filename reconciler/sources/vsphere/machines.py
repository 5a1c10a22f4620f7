"""The source ``vmware``: the machines of a vCenter that a policy selects, known by their instance UUIDs.

``sources.opening`` builds it from a policy; all policies of one look at the world share one look at each vCenter. Where
the vCenter cannot be asked, or does not show what a selection hangs on, there is no inventory rather than half of one.
"""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from reconciler.api import vcenters
from reconciler.base import errors
from reconciler.sources import hooks, machines
from reconciler.sources.vsphere.connections import sessions
from reconciler.sources.vsphere.inventory import judgements, listings, lookups, marks, selections, tags
from reconciler.sources.vsphere.reading import freezing
from reconciler.sources.vsphere.rebuilding import halfmade

#: Names in one message.
_SHOWN = 20


#: After a look that found no answer, this many seconds pass before the next one.
_PAUSE = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Silence:
    """A look that found no answer."""

    message: str
    #: On the monotonic clock.
    at: float


#: By session and by what was asked: the API of machines, the service of tags.
_silent: weakref.WeakKeyDictionary[sessions.Session, dict[str, _Silence]] = weakref.WeakKeyDictionary()
_MACHINES, _TAGS = "machines", "tags"

_T = TypeVar("_T")


class NotVisible(errors.SourceError):
    """The vCenter does not show what a selection hangs on."""

    retryable = False


class Looks:
    """One look at each vCenter, shared by all who ask; a failure is shared too. Not thread-safe."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._looks: dict[str, tuple[listings.Look, tags.Tags] | errors.SourceError] = {}

    def of(self, vcenter: vcenters.VCenter) -> tuple[listings.Look, tags.Tags]:
        """The look at a vCenter, and the way to its tags. Raises ``SourceError``."""
        found = self._looks.get(vcenter.name)
        if found is None:
            session = sessions.of(vcenter)
            try:
                found = (_patiently(session, _MACHINES, lambda: listings.Look(session)), tags.Tags(session))
            except errors.SourceError as error:
                found = error
            self._looks[vcenter.name] = found
        if isinstance(found, errors.SourceError):
            raise found
        return found


def _patiently(session: sessions.Session, what: str, ask: Callable[[], _T]) -> _T:
    """What ``ask`` returns. Whoever plans waits for it: where there was no answer, it is not asked at every plan."""
    silence = _silent.get(session, {}).get(what)
    if silence is not None and time.monotonic() - silence.at < _PAUSE:
        raise errors.SourceError(silence.message, hint="what hangs is asked again after five minutes")
    try:
        return ask()
    except errors.SourceError as error:
        if isinstance(error.__cause__, TimeoutError):
            _silent.setdefault(session, {})[what] = _Silence(message=error.message, at=time.monotonic())
        raise


class VMware:
    """Machines of one vCenter. Implements ``machines.Source``."""

    def __init__(
        self,
        *,
        wanted: vcenters.VMware,
        vcenter: vcenters.VCenter,
        looks: Looks,
        owner: str,
        hooks: hooks.Hooks | None = None,
    ) -> None:
        """``owner``: id of the catalog whose snapshots are ours."""
        self._wanted = wanted
        self._vcenter = vcenter
        self._looks = looks
        self._owner = owner
        self._hooks = hooks

    def inventory(self) -> machines.Inventory:
        """The machines that the selection means now; ``unreachable`` where that cannot be told as a whole."""
        try:
            return self._inventory()
        except errors.SourceError as error:
            told = machines.Found(code=error.code, message=str(error))
            return machines.Inventory(machines=(), unreachable=told)

    def freeze(self, machine_id: str, asked: machines.Asked = machines.ALONE) -> machines.Reading:
        """Snapshot one machine and open its disks. Raises ``SourceError``, ``HookFailed`` or ``Cancelled``."""
        session = sessions.of(self._vcenter)
        found = lookups.find(session, machine_id, asked.client)
        return freezing.freeze(session, self._wanted, found, self._hooks, asked)

    # -- inventory ---------------------------------------------------------------------------------------------------

    def _inventory(self) -> machines.Inventory:
        look, known_tags = self._looks.of(self._vcenter)
        traits = self._traits(look, known_tags)
        # What a restore is still making is nobody's machine yet; the next restore removes it, if that one died.
        all_selected = self._selected(look, traits)
        selected = [vm for vm in all_selected if not halfmade.unfinished(vm.shown_name)]
        halves = [vm.shown_name for vm in all_selected if halfmade.unfinished(vm.shown_name)]
        real = [vm.reference for vm in selected if not vm.template]
        details = _patiently(sessions.of(self._vcenter), _MACHINES, lambda: look.details(real))
        beside = _beside(look, selected)
        found: list[machines.Machine] = []
        bare: list[str] = []
        unknown: list[str] = []
        for vm in selected:
            detail = details.get(vm.reference)
            if vm.template or detail is None:
                continue
            if vm.connection != "connected" and not vm.instance_uuid:
                unknown.append(vm.shown_name)
            elif not detail.disks and vm.connection == "connected" and not detail.hidden:
                bare.append(vm.shown_name)
            else:
                found.append(self._machine(vm, detail, look, beside.get(vm.instance_uuid, ())))
        notes = [
            *_left_out("Templates", "templates are not backed up", [vm.shown_name for vm in selected if vm.template]),
            *_left_out("HalfMade", "a restore is making them, or died before it named them", halves),
            *_left_out("WithoutDisks", "machines without disks are left out", bare),
            *_left_out("Unidentified", "machines that cannot be reached and show no instance UUID", unknown),
            *self._idle_entries(traits.values()),
        ]
        return machines.Inventory(machines=tuple(found), notes=tuple(notes), snapshots=self._ours(look))

    def _traits(self, look: listings.Look, known_tags: tags.Tags) -> Mapping[str, selections.Traits]:
        """What the selection may ask, of every machine by reference."""
        entries = (*self._wanted.include, *self._wanted.exclude)
        globs = [entry.tag for entry in entries if entry.tag is not None]
        session = sessions.of(self._vcenter)
        carried = _patiently(session, _TAGS, lambda: known_tags.of(globs)) if globs else {}
        asked = selections.asks_attributes(entries)
        attributes = _patiently(session, _MACHINES, look.attributes) if asked else {}
        return {
            vm.reference: selections.Traits(
                name=vm.name,
                folder=vm.folder,
                datacenter=vm.datacenter,
                cluster=vm.cluster,
                host=vm.host,
                datastores=tuple(one.name for one in vm.datastores) if vm.datastores is not None else None,
                resource_pool=vm.resource_pool,
                power=vm.power,
                tags=carried.get(vm.reference, ()),
                attributes=attributes.get(vm.reference, {}),
            )
            for vm in look.machines
        }

    def _selected(self, look: listings.Look, traits: Mapping[str, selections.Traits]) -> list[listings.VM]:
        """Raises ``NotVisible``."""
        include, exclude = self._wanted.include, self._wanted.exclude
        selected: list[listings.VM] = []
        undecided: dict[str, tuple[str, ...]] = {}
        for vm in look.machines:
            answer = selections.selected(traits[vm.reference], include, exclude)
            if answer:
                selected.append(vm)
            elif answer is None:
                undecided[vm.shown_name] = selections.unknown(traits[vm.reference], (*include, *exclude))
        if undecided:
            keys = sorted({key for hidden in undecided.values() for key in hidden})
            raise NotVisible(
                f"VCenter {self._vcenter.name}: the user may not see what the selection asks of "
                f"{_names(undecided)}: {', '.join(keys)}",
                hint="give the user System.View and System.Read there, or select without these keys",
            )
        return selected

    def _machine(
        self, vm: listings.VM, details: listings.Details, look: listings.Look, rivals: Sequence[str]
    ) -> machines.Machine:
        """``rivals``: paths of machines beside the selection that have its instance UUID; those in it the plan sees."""
        choice = judgements.choose(vm.shown_name, details.disks, self._wanted)
        problem = judgements.problem(vm, details, choice, self._vcenter.spec)
        if rivals:
            problem = machines.Found(
                code="SameIdentity",
                message=f"{', '.join(rivals)} beside the selection has its instance UUID {vm.instance_uuid}: nobody can"
                " say whose images they would be; give one of them another",
            )
        return machines.Machine(
            id=self._identity(vm),
            name=vm.shown_name,
            source=f"{lookups.PREFIX}{self._vcenter.name}{vm.path}",
            disks=choice.wanted,
            problem=problem,
            notes=judgements.notes(vm, details, choice, look.now),
            host=vm.host,
            datastores=choice.datastores,
        )

    def _identity(self, vm: listings.VM) -> str:
        if vm.instance_uuid:
            return lookups.client_id(vm.instance_uuid)
        return f"{lookups.PREFIX}{self._vcenter.name}/{vm.reference}"

    def _ours(self, look: listings.Look) -> tuple[machines.Snapshot, ...]:
        """Snapshots with this catalog's mark, of any machine."""
        found = []
        for vm in look.machines:
            for one in vm.snapshots:
                mark = marks.parse(one.description)
                if mark is None or mark.owner != self._owner:
                    continue
                found.append(
                    machines.Snapshot(
                        id=mark.id,
                        vcenter=self._vcenter.name,
                        machine=self._identity(vm),
                        machine_name=vm.shown_name,
                        place=vm.reference,
                        job=mark.job,
                        reference=one.reference,
                        # Of this side's clock, which is not the vCenter's.
                        created=mark.made,
                    )
                )
        return tuple(found)

    def _idle_entries(self, traits: Iterable[selections.Traits]) -> list[machines.Found]:
        """Entries of ``include`` that match nothing: misspelt, or nothing there that the user may see."""
        seen = list(traits)
        idle = [entry for entry in self._wanted.include if not any(selections.matches(one, entry) for one in seen)]
        return [
            machines.Found(
                code="MatchesNothing",
                message=f"include {_words(entry)} matches none of the {len(seen)} machines that the user may see "
                f"in VCenter {self._vcenter.name}",
            )
            for entry in idle
        ]


def _words(entry: vcenters.MachineMatch) -> str:
    named = entry.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    return "{" + ", ".join(f"{key}: {value}" for key, value in named.items()) + "}"


def _left_out(code: str, why: str, names: Sequence[str]) -> list[machines.Found]:
    return [machines.Found(code=code, message=f"{why}: {_names(names)}")] if names else []


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _beside(look: listings.Look, selected: Iterable[listings.VM]) -> dict[str, list[str]]:
    """Paths of the live machines that a selection leaves out, by instance UUID."""
    inside = {vm.reference for vm in selected}
    found: dict[str, list[str]] = {}
    for vm in look.machines:
        if vm.instance_uuid and not vm.template and vm.reference not in inside:
            found.setdefault(vm.instance_uuid, []).append(vm.path)
    return found
