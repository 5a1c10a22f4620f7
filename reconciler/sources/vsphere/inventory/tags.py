"""Tags, which a vCenter keeps beside the vSphere API: asked over REST, the newer form or else the older one.

Only what a selection names is asked: the categories that match, their tags, and the machines that carry those. A tag
on a folder or a host is no tag of the machines in it. A vCenter whose service does not answer makes a selection by
tags unanswerable, never empty.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import glob
import http.client
import json
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib import parse

from reconciler.base import errors
from reconciler.sources.vsphere.connections import faults, sessions
from reconciler.sources.vsphere.inventory import selections

#: Seconds for one answer.
_PATIENCE: Final = 60.0
#: Pauses before a question is repeated whose answer broke, in seconds.
_PAUSES: Final = (0.2, 0.8, 2.0)
_HEADER: Final = "vmware-api-session-id"
#: Tags in one question about their machines.
_BULK: Final = 200
#: An answer that is no JSON: not the same as one that says nothing.
_WORDLESS: Final = object()
_MOST_BYTES: Final = 64 << 20


class TagsUnavailable(errors.SourceError):
    """The vCenter does not answer questions about tags."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """How one form of the API is spoken."""

    session: str
    base: str
    action: str
    #: What stands before an id in a path.
    by_id: str
    #: Whether the category of ``list-tags-for-category`` stands in the body.
    category_in_body: bool


_NEWER: Final = _Form(session="/api/session", base="/api/cis/tagging", action="action", by_id="", category_in_body=True)
_OLDER: Final = _Form(
    session="/rest/com/vmware/cis/session",
    base="/rest/com/vmware/cis/tagging",
    action="~action",
    by_id="id:",
    category_in_body=False,
)


class Tags:
    """The tags of one vCenter, as long as one look lasts. Not thread-safe."""

    def __init__(self, session: sessions.Session) -> None:
        """Nothing is asked yet."""
        self._session = session
        self._categories: dict[str, str] | None = None
        #: By category: id and name of each tag.
        self._tags: dict[str, list[tuple[str, str]]] = {}
        #: By tag: references of machines.
        self._carriers: dict[str, tuple[str, ...]] = {}

    def of(self, globs: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """The tags ``category/name`` that match one of the globs, of every machine that has such, by reference.

        Raises ``SourceError``.
        """
        wanted = tuple(dict.fromkeys(globs))
        with contextlib.closing(_Conversation(self._session)) as asked:
            tags = self._matching(asked, wanted)
            unasked = [tag for tag in tags if tag not in self._carriers]
            for start in range(0, len(unasked), _BULK):
                self._ask_carriers(asked, unasked[start : start + _BULK])
        found: dict[str, list[str]] = {}
        for tag, name in tags.items():
            for reference in self._carriers.get(tag, ()):
                found.setdefault(reference, []).append(name)
        return {reference: tuple(sorted(names)) for reference, names in found.items()}

    def _matching(self, asked: _Conversation, globs: Sequence[str]) -> dict[str, str]:
        """Tags that match a glob: ``category/name`` by id."""
        if self._categories is None:
            ids = asked.strings("GET", "/category")
            self._categories = {one: asked.text("/category/{id}", one, "name") for one in ids}
        matching = {}
        for category, name in self._categories.items():
            if not any(_may_hold(name, glob) for glob in globs):
                continue
            if category not in self._tags:
                ids = asked.tags_of(category)
                self._tags[category] = [(one, asked.text("/tag/{id}", one, "name")) for one in ids]
            for tag, short in self._tags[category]:
                full = f"{name}/{short}"
                if any(selections.tagged(full, glob) for glob in globs):
                    matching[tag] = full
        return matching

    def named(self, asked: _Conversation, names: Sequence[str]) -> dict[str, str]:
        """Those tags ``category/name`` that there are, by id. Raises ``SourceError``."""
        found = self._matching(asked, [glob.escape(name) for name in names])
        return {id: name for id, name in found.items() if name in names}

    def _ask_carriers(self, asked: _Conversation, tags: Sequence[str]) -> None:
        answer = asked.ask(
            "POST", "/tag-association", action="list-attached-objects-on-tags", body={"tag_ids": list(tags)}
        )
        self._carriers.update(dict.fromkeys(tags, ()))
        try:
            for one in answer or ():
                machines = [str(found["id"]) for found in one["object_ids"] or () if found["type"] == "VirtualMachine"]
                self._carriers[str(one["tag_id"])] = tuple(machines)
        except (TypeError, LookupError) as error:
            raise asked.strange("/tag-association") from error


def carried_by(session: sessions.Session, reference: str) -> tuple[str, ...]:
    """The tags ``category/name`` of one machine. Raises ``SourceError``."""
    with contextlib.closing(_Conversation(session)) as asked:
        ids = asked.strings(
            "POST", "/tag-association", action="list-attached-tags", body={"object_id": _object(reference)}
        )
        categories: dict[str, str] = {}
        found = []
        for one in ids:
            category = asked.text("/tag/{id}", one, "category_id")
            if category not in categories:
                categories[category] = asked.text("/category/{id}", category, "name")
            found.append(f"{categories[category]}/{asked.text('/tag/{id}', one, 'name')}")
    return tuple(sorted(found))


def attach(session: sessions.Session, reference: str, names: Sequence[str]) -> list[str]:
    """Give one machine the tags ``category/name``; those that the vCenter does not have. Raises ``SourceError``."""
    known = Tags(session)
    with contextlib.closing(_Conversation(session)) as asked:
        by_name = {name: id for id, name in known.named(asked, names).items()}
        for name in names:
            if name in by_name:
                body = {"object_id": _object(reference)}
                asked.ask_of("/tag-association/{id}", by_name[name], action="attach", body=body)
    return [name for name in names if name not in by_name]


def _object(reference: str) -> dict[str, str]:
    return {"type": "VirtualMachine", "id": reference}


def _may_hold(category: str, glob: str) -> bool:
    """Whether tags of a category may match: whether the glob's own category does."""
    head, slash, _ = glob.partition("/")
    # What stands for any sign stands for a slash too: then the first part alone decides nothing.
    return not slash or any(sign in head for sign in "*?[") or category == head


class _Conversation:
    """A session with the REST API, from its login to its logout."""

    def __init__(self, session: sessions.Session) -> None:
        self._session = session
        self._doing = f"VCenter {session.name}: tags"
        self._connection: http.client.HTTPSConnection | None = None
        self._form: _Form | None = None
        self._id: str | None = None

    def ask(self, method: str, path: str, *, action: str | None = None, body: object = None) -> Any:
        """The answer's value. Raises ``SourceError``."""
        self._open()
        status, value = self._request(method, path, action, body)
        if status == 401:
            # Sessions of this API end by themselves too.
            self._id = None
            self._open()
            status, value = self._request(method, path, action, body)
        if status not in (200, 201, 204):
            raise self._refused(path, status, value)
        return value

    def strings(self, method: str, path: str, *, action: str | None = None, body: object = None) -> list[str]:
        """An answer that is a list of texts. Raises ``SourceError``."""
        # Some servers say nothing where they have none.
        value = self.ask(method, path, action=action, body=body) or []
        if not isinstance(value, list):
            raise self.strange(path)
        return [str(one) for one in value]

    def text(self, path: str, id: str, field: str) -> str:
        """One field of the object with this id. Raises ``SourceError``."""
        self._open()
        value = self.ask("GET", path.replace("{id}", self._by_id(id)))
        if not isinstance(value, dict) or field not in value:
            raise self.strange(path)
        return str(value[field])

    def ask_of(self, path: str, id: str, *, action: str, body: object) -> None:
        """Change something of the object with this id. Raises ``SourceError``."""
        self._open()
        self.ask("POST", path.replace("{id}", self._by_id(id)), action=action, body=body)

    def tags_of(self, category: str) -> list[str]:
        """Ids of the tags of a category. Raises ``SourceError``."""
        self._open()
        if self._form is not None and self._form.category_in_body:
            return self.strings("POST", "/tag", action="list-tags-for-category", body={"category_id": category})
        return self.strings("POST", f"/tag/{self._by_id(category)}", action="list-tags-for-category")

    def close(self) -> None:
        """Log out."""
        if self._form is not None and self._id is not None:
            # What cannot be ended now ends by itself.
            with contextlib.suppress(errors.SourceError):
                self._exchange("DELETE", self._form.session, None)
        if self._connection is not None:
            self._connection.close()

    def _by_id(self, id: str) -> str:
        return (self._form.by_id if self._form else "") + parse.quote(id, safe=":")

    def _open(self) -> None:
        if self._id is not None:
            return
        for form in (_NEWER, _OLDER):
            status, value = self._exchange("POST", form.session, None, login=True)
            if status in (200, 201) and isinstance(value, str):
                self._form, self._id = form, value
                return
            if status == 401:
                raise faults.LoginRefused(
                    f"{self._doing}: the tag service refuses the user or the password", hint="correct the credential"
                )
            # What is not there, in an older vCenter or behind a gateway, answers so.
            if status not in (400, 404, 405, 501):
                raise self._refused(form.session, status, value)
        raise TagsUnavailable(
            f"{self._doing}: the server has no tag service (HTTP 404 for {_NEWER.session} and {_OLDER.session})",
            hint="select by name, folder or custom attribute instead",
        )

    def _request(self, method: str, path: str, action: str | None, body: object) -> tuple[int, Any]:
        form = self._form
        if form is None:
            raise AssertionError("asked before the login")
        query = f"?{parse.quote(form.action, safe='~')}={action}" if action else ""
        return self._exchange(method, f"{form.base}{path}{query}", body)

    def _exchange(self, method: str, path: str, body: object, *, login: bool = False) -> tuple[int, Any]:
        """Status and value of one question; asked again where the answer broke: twice is no more than once."""
        headers = {"Accept": "application/json"}
        if login:
            known = self._session.login()
            word = base64.b64encode(f"{known.username}:{known.password}".encode()).decode()
            headers["Authorization"] = f"Basic {word}"
        elif self._id is not None:
            headers[_HEADER] = self._id
        text = None if body is None else json.dumps(body)
        if text is not None:
            headers["Content-Type"] = "application/json"
        for pause in (*_PAUSES, None):
            try:
                status, value = self._once(method, path, text, headers)
                if status < 500 or status == 501 or pause is None:
                    return status, value
            except faults.BROKEN as error:
                self._drop()
                if pause is None or isinstance(error, ssl.SSLCertVerificationError | TimeoutError):
                    raise faults.translated(self._session.spec, error, self._doing) from error
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, text: str | None, headers: Mapping[str, str]) -> tuple[int, Any]:
        spec = self._session.spec
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                spec.server, spec.port, timeout=_PATIENCE, context=self._session.context
            )
        self._connection.request(method, path, body=text, headers=dict(headers))
        answer = self._connection.getresponse()
        content = answer.read(_MOST_BYTES)
        if answer.will_close or not answer.isclosed():
            self._drop()
        try:
            value = json.loads(content)
        except ValueError:
            value = _WORDLESS
        if isinstance(value, dict) and set(value) == {"value"}:
            # The older form wraps everything.
            value = value["value"]
        return answer.status, value

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def strange(self, path: str) -> errors.SourceError:
        """An answer of another form."""
        return TagsUnavailable(
            f"{self._doing}: {path}: an answer that cannot be understood", hint="is this a vCenter's REST API?"
        )

    def _refused(self, path: str, status: int, value: object) -> errors.SourceError:
        kind: type[errors.SourceError] = faults.PrivilegeMissing if status == 403 else TagsUnavailable
        said = _words(value)
        return kind(
            f"{self._doing}: {path}: HTTP {status}{': ' + said if said else ''}",
            hint="the user needs to see tags; README lists what is needed" if status == 403 else "try again later",
        )


def _words(value: object) -> str:
    """The message in an error of either form."""
    try:
        held: Any = value
        held = held.get("value", held)
        return "; ".join(str(one["default_message"]) for one in held["messages"])[:300]
    except (AttributeError, TypeError, LookupError):
        return ""
