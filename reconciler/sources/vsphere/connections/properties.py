"""Asking for properties: many objects in pages, one object at a time, and the state of a task.

Properties are always asked for by ``RetrievePropertiesEx``: a property that is not set is then simply not there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from pyVmomi import vim, vmodl

from reconciler.base import errors, meters
from reconciler.sources.vsphere.connections import faults, sessions

#: Objects in one answer.
PAGE: Final = 250
#: Seconds between two looks at a task, at first and at most.
_FIRST: Final = 0.05
_MOST: Final = 2.0
#: Seconds that a vCenter which is away is waited for, those that a task nobody sees may take, and between two looks.
_OUTAGE: Final = 300.0
_UNSEEN: Final = 15.0
_LOOK: Final = 0.25

_Collector = vmodl.query.PropertyCollector


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One object and those of its properties that are set."""

    object: Any
    values: Mapping[str, Any]
    #: Properties that the vCenter would not show, with its words for why.
    hidden: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def reference(self) -> str:
        """Such as ``vm-57``."""
        return str(self.object._moId)


def everything(
    session: sessions.Session, kinds: type[Any] | Sequence[type[Any]], paths: Sequence[str], doing: str
) -> list[Shown]:
    """Every object of a kind, or of several, below the root folder, with those properties. Raises ``SourceError``."""
    several = [kinds] if isinstance(kinds, type) else list(kinds)
    return _whole(session, lambda: _everything(session, several, paths, doing))


def _everything(session: sessions.Session, kinds: Sequence[type[Any]], paths: Sequence[str], doing: str) -> list[Shown]:
    content = session.content
    view = session.read(
        doing, lambda: content.viewManager.CreateContainerView(content.rootFolder, list(kinds), recursive=True)
    )
    try:
        walk = _Collector.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        start = _Collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])
        # Silence about a view that ended with its session would look like a vCenter without machines.
        return list(_pages(session, kinds, paths, [start], doing, silent=False))
    finally:
        # A view that is not destroyed ends with the session.
        with contextlib.suppress(errors.SourceError):
            session.act(doing, view.DestroyView)


def of(session: sessions.Session, object: Any, paths: Sequence[str], doing: str) -> Mapping[str, Any]:
    """The named properties of one object, those that are set. Raises ``SourceError``, ``Vanished`` if it is gone."""
    for shown in of_many(session, [object], paths, doing):
        if shown.hidden:
            raise faults.PrivilegeMissing(
                f"{doing}: {object._moId} hides {_listed(shown.hidden)}",
                hint="give the user System.Read on it; README lists what is needed",
            )
        return shown.values
    raise faults.Vanished(f"{doing}: {object._moId} shows nothing of itself", hint="it was removed meanwhile")


def of_many(session: sessions.Session, objects: Sequence[Any], paths: Sequence[str], doing: str) -> list[Shown]:
    """The named properties of objects of one kind; those that are gone are left out. Raises ``SourceError``."""
    if not objects:
        return []
    starts = [_Collector.ObjectSpec(obj=one, skip=False) for one in objects]
    return _whole(session, lambda: list(_pages(session, [type(objects[0])], paths, starts, doing)))


def _whole(session: sessions.Session, ask: Callable[[], list[Shown]]) -> list[Shown]:
    """What ``ask`` returns. Pages and views belong to a session: where it was renewed on the way, or an answer was lost
    so that the next page is another one, all is asked for again. What is returned is never a part."""
    for again in (True, True, False):
        life = session.began()
        try:
            return ask()
        except faults.VSphereFault as error:
            if not again or not (isinstance(error, _Torn) or life != session.life):
                raise
    raise AssertionError("unreachable")


class _Torn(faults.VSphereFault):
    """The next page does not exist any more."""


def walked(
    session: sessions.Session, kind: type[Any], paths: Sequence[str], starts: list[Any], doing: str
) -> Iterator[Shown]:
    """What a walk of the property collector's own from ``starts`` comes by. Raises ``SourceError``."""
    return _pages(session, [kind], paths, starts, doing)


def _pages(
    session: sessions.Session,
    kinds: Sequence[type[Any]],
    paths: Sequence[str],
    starts: list[Any],
    doing: str,
    *,
    silent: bool = True,
) -> Iterator[Shown]:
    """``silent``: starts that do not exist are left out; else that is an error."""
    collector = session.content.propertyCollector
    wanted = [_Collector.PropertySpec(type=kind, pathSet=list(paths), all=False) for kind in kinds]
    asked = _Collector.FilterSpec(objectSet=starts, propSet=wanted, reportMissingObjectsInResults=silent)
    options = _Collector.RetrieveOptions(maxObjects=PAGE)
    page = session.read(doing, lambda: _seen(collector.RetrievePropertiesEx([asked], options)))
    while page is not None:
        for item in page.objects or ():
            yield _shown(item)
        token = page.token
        if not token:
            return
        try:
            page = session.read(doing, _continued(collector, token))
        except faults.VSphereFault as error:
            torn = _Torn(error.message, hint=error.hint)
            torn.fault = error.fault
            raise torn from error


def _seen(page: Any) -> Any:
    """The page. To nobody a vCenter may show all objects, and hide each property of theirs: it is raised as what it is,
    so that somebody logs in."""
    for item in (page.objects if page is not None else None) or ():
        for one in item.missingSet or ():
            if faults.is_session(one.fault):
                raise one.fault
    return page


def _shown(item: Any) -> Shown:
    values = {one.name: one.val for one in item.propSet or ()}
    hidden = {
        str(one.path): faults.words(one.fault)
        for one in item.missingSet or ()
        # What this version of the API does not have is not set.
        if not isinstance(one.fault, vmodl.query.InvalidProperty)
    }
    return Shown(object=item.obj, values=values, hidden=hidden)


def _listed(hidden: Mapping[str, str]) -> str:
    return ", ".join(f"{path} ({why})" for path, why in sorted(hidden.items()))


def _continued(collector: Any, token: str) -> Callable[[], Any]:
    return lambda: _seen(collector.ContinueRetrievePropertiesEx(token))


def wait(session: sessions.Session, task: Any, doing: str, meter: meters.Meter | None = None) -> Any:
    """The result of a task once it has succeeded. Raises ``SourceError`` with the fault's own words, or ``Cancelled``:
    the task itself goes on then.

    Its fields are asked for one by one: a task may name something in others that pyVmomi refuses to read.
    """
    pause = _FIRST
    while True:
        if meter is not None:
            meter.check()
        try:
            shown = of(session, task, ("info.state", "info.error", "info.result"), doing)
        except faults.Vanished as gone:
            # Not a word on what it was to do, which may have come about.
            raise errors.SourceError(
                f"{doing}: the vCenter has forgotten the task", hint="look whether it came about; was it restarted?"
            ) from gone
        state = shown.get("info.state")
        if state == "success":
            return shown.get("info.result")
        if state == "error":
            error = shown.get("info.error") or vmodl.fault.SystemError(reason="the task failed without a word")
            raise faults.translated(session.spec, error, doing)
        if state not in ("queued", "running"):
            raise faults.VSphereFault(f"{doing}: the task is in no state", hint="the vCenter's own task list says more")
        time.sleep(pause)
        pause = min(_MOST, pause * 1.5)


def change(session: sessions.Session, doing: str, call: Callable[[], Any], done: Callable[[], bool]) -> None:
    """Have something changed by the task of ``call``. Where an answer was lost, or the task with a vCenter that began
    anew, ``done`` says whether it came about. Raises ``SourceError``."""
    try:
        wait(session, session.act(doing, call), doing)
    except faults.VSphereFault:
        raise
    except errors.SourceError:
        if not _comes(done):
            raise


def _comes(done: Callable[[], bool]) -> bool:
    """Whether ``done`` becomes true: a task that nobody sees may be under way, and a vCenter be about to come back."""
    until, known = time.monotonic() + _OUTAGE, False
    while time.monotonic() < until:
        try:
            if done():
                return True
            if not known:
                until, known = time.monotonic() + _UNSEEN, True
        except errors.SourceError as error:
            if not error.retryable or isinstance(error, faults.VSphereFault):
                return False
        time.sleep(_LOOK)
    return False


def exists(session: sessions.Session, object: Any, doing: str) -> bool:
    """Whether a managed entity is there. Raises ``SourceError``."""
    try:
        of(session, object, ("name",), doing)
    except faults.Vanished:
        return False
    return True
