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
from reconciler.sources.vsphere import faults, sessions

#: Objects in one answer.
PAGE: Final = 250
#: Seconds between two looks at a task, at first and at most.
_FIRST: Final = 0.05
_MOST: Final = 2.0

_Collector = vmodl.query.PropertyCollector


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One object and those of its properties that are set."""

    object: Any
    values: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """Such as ``vm-57``."""
        return str(self.object._moId)


def everything(session: sessions.Session, kind: type[Any], paths: Sequence[str], doing: str) -> list[Shown]:
    """Every object of a kind below the root folder, with the named properties. Raises ``SourceError``."""
    content = session.content
    view = session.read(
        doing, lambda: content.viewManager.CreateContainerView(content.rootFolder, [kind], recursive=True)
    )
    try:
        walk = _Collector.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
        start = _Collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])
        return list(_pages(session, kind, paths, [start], doing))
    finally:
        # A view that is not destroyed ends with the session.
        with contextlib.suppress(errors.SourceError):
            session.act(doing, view.DestroyView)


def of(session: sessions.Session, object: Any, paths: Sequence[str], doing: str) -> Mapping[str, Any]:
    """The named properties of one object, those that are set. Raises ``SourceError``, ``Vanished`` if it is gone."""
    start = _Collector.ObjectSpec(obj=object, skip=False)
    for shown in _pages(session, type(object), paths, [start], doing):
        return shown.values
    raise faults.Vanished(f"{doing}: {object._moId} shows nothing of itself", hint="it was removed meanwhile")


def of_many(session: sessions.Session, objects: Sequence[Any], paths: Sequence[str], doing: str) -> list[Shown]:
    """The named properties of objects of one kind; those that are gone are left out. Raises ``SourceError``."""
    if not objects:
        return []
    starts = [_Collector.ObjectSpec(obj=one, skip=False) for one in objects]
    return list(_pages(session, type(objects[0]), paths, starts, doing))


def walked(
    session: sessions.Session, kind: type[Any], paths: Sequence[str], starts: list[Any], doing: str
) -> Iterator[Shown]:
    """What a walk of the property collector's own from ``starts`` comes by. Raises ``SourceError``."""
    return _pages(session, kind, paths, starts, doing)


def _pages(
    session: sessions.Session, kind: type[Any], paths: Sequence[str], starts: list[Any], doing: str
) -> Iterator[Shown]:
    collector = session.content.propertyCollector
    wanted = _Collector.PropertySpec(type=kind, pathSet=list(paths), all=False)
    asked = _Collector.FilterSpec(objectSet=starts, propSet=[wanted], reportMissingObjectsInResults=True)
    options = _Collector.RetrieveOptions(maxObjects=PAGE)
    page = session.read(doing, lambda: collector.RetrievePropertiesEx([asked], options))
    while page is not None:
        for item in page.objects or ():
            yield Shown(object=item.obj, values={one.name: one.val for one in item.propSet or ()})
        token = page.token
        if not token:
            return
        page = session.read(doing, _continued(collector, token))


def _continued(collector: Any, token: str) -> Callable[[], Any]:
    return lambda: collector.ContinueRetrievePropertiesEx(token)


def wait(session: sessions.Session, task: Any, doing: str, meter: meters.Meter | None = None) -> Any:
    """The result of a task once it has succeeded. Raises ``SourceError`` with the fault's own words, or ``Cancelled``:
    the task itself goes on then.

    Its fields are asked for one by one: a task may name something in others that pyVmomi refuses to read.
    """
    pause = _FIRST
    while True:
        if meter is not None:
            meter.check()
        shown = of(session, task, ("info.state", "info.error", "info.result"), doing)
        state = shown.get("info.state")
        if state == "success":
            return shown.get("info.result")
        if state == "error":
            error = shown.get("info.error") or vmodl.fault.SystemError(reason="the task failed without a word")
            raise faults.translated(session.spec, error, doing)
        time.sleep(pause)
        pause = min(_MOST, pause * 1.5)
