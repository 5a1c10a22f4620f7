"""Tags of the lab, over the older and the newer form of the REST API."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import lease_clients as clients
import pytest
from lease_clients import Lab

pytestmark = clients.needs_lab

MACHINES = [
    {"name": "a", "tags": ["backup/gold", "site/north"]},
    {"name": "b", "tags": ["backup/gold"]},
    {"name": "c", "tags": ["backup/silver", "site/north", "owner"]},
    {"name": "d"},
]
ENTRIES = ("/rest/com/vmware/cis", "/api/cis")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab.start(tmp_path_factory.mktemp("lab"), machines=MACHINES) as lab:
        yield lab


class Rest:
    """One of the two forms, with a session."""

    def __init__(self, lab: Lab, entry: str, password: str | None = None) -> None:
        self.lab, self.newer, self.entry = lab, entry.startswith("/api"), entry
        self.action = "action" if self.newer else "~action"
        self.login = "/api/session" if self.newer else "/rest/com/vmware/cis/session"
        self.headers: dict[str, str] = {}
        secret = base64.b64encode(f"{lab.username}:{password or lab.password}".encode()).decode()
        status, value = self.ask("POST", self.login, headers={"Authorization": f"Basic {secret}"})
        self.opened = status
        if isinstance(value, str):
            self.headers["vmware-api-session-id"] = value

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, plain: bool = False
    ) -> tuple[int, Any]:
        with contextlib.closing(clients.connection(self.lab)) as link:
            text = None if body is None else json.dumps(body)
            link.request(method, path, text, {"Content-Type": "application/json", **(headers or self.headers)})
            answer: http.client.HTTPResponse = link.getresponse()
            content = answer.read()
        value = json.loads(content) if content and not plain else None
        if answer.status == 200 and not self.newer and value is not None:
            value = value["value"]
        return answer.status, value

    def get(self, path: str) -> Any:
        status, value = self.ask("GET", self.entry + path)
        assert status == 200, value
        return value

    def post(self, path: str, action: str, body: Any) -> Any:
        status, value = self.ask("POST", f"{self.entry}{path}?{self.action}={action}", body)
        assert status == 200, value
        return value

    def one(self, path: str, identifier: str) -> Any:
        return self.get(f"{path}/{identifier}" if self.newer else f"{path}/id:{identifier}")


@pytest.fixture(params=ENTRIES, ids=["rest", "api"])
def rest(lab: Lab, request: pytest.FixtureRequest) -> Rest:
    return Rest(lab, request.param)


def test_tags_and_categories_have_names(rest: Rest) -> None:
    assert rest.opened == (201 if rest.newer else 200)
    names = {}
    for identifier in rest.get("/tagging/tag"):
        assert identifier.startswith("urn:vmomi:InventoryServiceTag:")
        tag = rest.one("/tagging/tag", identifier)
        category = rest.one("/tagging/category", tag["category_id"])
        names[f"{category['name']}/{tag['name']}"] = (identifier, category["id"])
    assert sorted(names) == ["backup/gold", "backup/silver", "site/north", "tags/owner"]
    assert sorted(rest.get("/tagging/category")) == sorted({category for _, category in names.values()})
    backup = names["backup/gold"][1]
    if rest.newer:
        within = rest.post("/tagging/tag", "list-tags-for-category", {"category_id": backup})
    else:
        within = rest.post(f"/tagging/tag/id:{backup}", "list-tags-for-category", {})
    assert sorted(within) == sorted(names[name][0] for name in ("backup/gold", "backup/silver"))


def test_what_a_tag_is_attached_to_in_both_directions(lab: Lab, rest: Rest) -> None:
    morefs = {one["name"]: one["moref"] for one in lab.state()["machines"]}
    tags = {rest.one("/tagging/tag", one)["name"]: one for one in rest.get("/tagging/tag")}
    asked = {"tag_ids": [tags["gold"], tags["north"]]}
    answer = rest.post("/tagging/tag-association", "list-attached-objects-on-tags", asked)
    found = {one["tag_id"]: {entry["id"] for entry in one["object_ids"]} for one in answer}
    assert found == {tags["gold"]: {morefs["a"], morefs["b"]}, tags["north"]: {morefs["a"], morefs["c"]}}
    assert {entry["type"] for one in answer for entry in one["object_ids"]} == {"VirtualMachine"}
    objects = [{"type": "VirtualMachine", "id": moref} for moref in morefs.values()]
    answer = rest.post("/tagging/tag-association", "list-attached-tags-on-objects", {"object_ids": objects})
    assert {one["object_id"]["id"]: set(one["tag_ids"]) for one in answer} == {
        morefs["a"]: {tags["gold"], tags["north"]},
        morefs["b"]: {tags["gold"]},
        morefs["c"]: {tags["silver"], tags["north"], tags["owner"]},
    }
    assert set(rest.post("/tagging/tag-association", "list-attached-tags", {"object_id": objects[1]})) == {tags["gold"]}


def test_refusals_are_those_of_a_vcenter(lab: Lab, rest: Rest) -> None:
    refused = Rest(lab, rest.entry, "wrong")
    assert refused.opened == 401
    assert refused.ask("GET", refused.entry + "/tagging/tag")[0] == 401
    status, value = rest.ask("GET", rest.entry + "/tagging/nothing")
    assert status == 404
    assert value.get("error_type" if rest.newer else "type")
    many = {"object_ids": [{"type": "VirtualMachine", "id": f"vm-{n}"} for n in range(2001)]}
    path = f"{rest.entry}/tagging/tag-association?{rest.action}=list-attached-tags-on-objects"
    assert rest.ask("POST", path, many)[0] == 400
    other = "action" if not rest.newer else "~action"
    assert rest.ask("POST", path.replace(f"?{rest.action}=", f"?{other}="), {"object_ids": []})[0] == 404


def test_a_session_ends_by_word_or_by_idleness(lab: Lab, rest: Rest) -> None:
    before = lab.state()["restSessions"]
    assert rest.ask("DELETE", rest.login)[0] == (204 if rest.newer else 200)
    assert lab.state()["restSessions"] == before - 1
    assert rest.ask("GET", rest.entry + "/tagging/tag")[0] == 401
    again = Rest(lab, rest.entry)
    lab.mode(sessionSeconds=1)
    try:
        time.sleep(1.1)
        assert again.ask("GET", again.entry + "/tagging/tag")[0] == 401
    finally:
        lab.mode(sessionSeconds=0)


def test_faults_strike_the_rest_api_too(lab: Lab, rest: Rest) -> None:
    prefix = rest.entry.split("/")[1]
    lab.fault(on=f"GET /{prefix}", kind="http503")
    assert rest.ask("GET", rest.entry + "/tagging/tag", plain=True)[0] == 503
    assert rest.ask("GET", rest.entry + "/tagging/tag")[0] == 200
    lab.fault(on=f"GET /{prefix}", kind="expire")
    assert rest.ask("GET", rest.entry + "/tagging/tag")[0] == 401
    again = Rest(lab, rest.entry)
    lab.act("a", "expireSessions")
    assert again.ask("GET", rest.entry + "/tagging/tag")[0] == 401


def test_all_associations_come_in_pages(tmp_path_factory: pytest.TempPathFactory) -> None:
    machines = [{"name": f"vm{n}", "tags": ["a/b", "c/d"]} for n in range(301)]
    with Lab.start(tmp_path_factory.mktemp("many"), machines=machines) as lab:
        rest = Rest(lab, "/api/cis")
        pages, marker = [], ""
        while True:
            suffix = f"?marker={marker}" if marker else ""
            status, value = rest.ask("GET", "/api/vcenter/tagging/associations" + suffix)
            assert status == 200
            pages.append(value["associations"])
            marker = value.get("marker", "")
            assert value["status"] == ("READY" if marker else "END_OF_DATA")
            if not marker:
                break
        assert [len(page) for page in pages] == [500, 102]
        assert len({(one["tag"], one["object"]["id"]) for page in pages for one in page}) == 602
        assert rest.ask("GET", "/api/vcenter/tagging/associations?marker=other")[0] == 400
