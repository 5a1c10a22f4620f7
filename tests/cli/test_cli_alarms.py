"""Alarms reach somebody: a real webhook and a real mail server hear them from the installed command."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import ears
import estate_samples
import holdfast_command
import pytest
from estate_samples import Estate

#: Words of the URLs that may stand nowhere.
SECRETS = ("sesame", "hushhush", "bobbington-7319")


@pytest.fixture
def hook() -> Iterator[ears.Sink]:
    """A webhook."""
    with ears.webhook() as sink:
        yield sink


def url(hook: ears.Sink) -> str:
    """A webhook's URL with a user, a password and a token."""
    return f"json://bobbington-7319:sesame@127.0.0.1:{hook.port}/hushhush"


def overdue(empty: Estate, moment: str, *urls: str) -> holdfast_command.Command:
    """An estate of two machines, one of which was backed up on 2 March and is out of sight since; at a later moment."""
    if not (empty.folder / "away").exists():
        empty.machine("beta")
        empty.apply(clock="2026-03-02T12:00:00Z")
        (empty.folder / "machines/alpha").rename(empty.folder / "away")
    clock = estate_samples.set_clock(empty.folder / "clock", moment)
    return empty.at(clock).using(HOLDFAST_NOTIFY=" ".join(urls))


def titles(sink: ears.Sink) -> list[str]:
    """The titles of what arrived since the last look, without what the seconds of a clock do to them."""
    return [one["title"].partition(" since ")[0] for one in sink.take()]


BEGUN = "Holdfast: alpha has had no success under nightly"
OVER = "Holdfast: over: alpha has had no success under nightly"


def test_told_once_over_restarts_again_a_day_later_and_once_when_it_is_over(empty: Estate, hook: ears.Sink) -> None:
    overdue(empty, "2026-03-04T11:00:00Z", url(hook)).run("apply", ".", "--yes")
    assert titles(hook) == []
    for moment, heard in (
        ("2026-03-04T13:00:00Z", [BEGUN]),
        ("2026-03-04T13:00:00Z", []),
        ("2026-03-05T12:00:00Z", []),
        ("2026-03-05T14:00:00Z", [BEGUN]),
    ):
        overdue(empty, moment, url(hook)).run("apply", ".", "--yes")
        assert titles(hook) == heard, moment
    (empty.folder / "away").rename(empty.folder / "machines/alpha")
    (empty.folder / "away").mkdir()
    for heard in ([OVER], []):
        overdue(empty, "2026-03-05T15:00:00Z", url(hook)).run("apply", ".", "--yes")
        assert titles(hook) == heard


def test_one_message_tells_all_that_begins_in_a_pass(empty: Estate, hook: ears.Sink) -> None:
    for name in ("beta", "gamma"):
        empty.machine(name)
    empty.apply(clock="2026-03-02T12:00:00Z")
    (empty.folder / "machines").rename(empty.folder / "elsewhere")
    command = empty.at("2026-03-09T12:00:00Z").using(HOLDFAST_NOTIFY=url(hook))
    command.run("run", ".", "--once", code=None)
    (one,) = hook.take()
    assert one["title"] == "Holdfast: 3 alarms" and one["type"] == "failure"
    assert all(
        f"{name} has had no success under nightly since 2026-03-02" in one["message"] for name in ("alpha", "beta")
    )
    assert "its source cannot be reached" in one["message"]


def test_mail_is_delivered(empty: Estate) -> None:
    with ears.mailbox() as box:
        mail = f"mailto://127.0.0.1:{box.port}?from=holdfast@example.org&to=ops@example.org&mode=insecure"
        overdue(empty, "2026-03-09T12:00:00Z", mail).run("apply", ".", "--yes")
        (one,) = box.take()
    assert "ops@example.org" in one["to"][0]
    assert one["title"].startswith(BEGUN) and "Next: holdfast explain client alpha" in one["text"]


def test_a_dead_server_fails_no_pass_and_is_tried_again_later_each_time(empty: Estate, hook: ears.Sink) -> None:
    hook.status = 500
    found = overdue(empty, "2026-03-09T12:00:00Z", url(hook)).run("apply", ".", "--yes")
    assert "alarms were not told: json#1 did not take it" in found.stderr
    hook.status = 200
    overdue(empty, "2026-03-09T12:00:10Z", url(hook)).run("apply", ".", "--yes")
    assert titles(hook) == []
    overdue(empty, "2026-03-09T12:02:00Z", url(hook)).run("apply", ".", "--yes")
    assert titles(hook) == [BEGUN]
    said = [(one["event"], one["object"]) for one in empty.get("audit") if one["event"].startswith("Alarm")]
    assert said == [("AlarmNotTold", "channel/json#1"), ("AlarmTold", "channel/json#1")]


def test_one_dead_channel_does_not_silence_another(empty: Estate, hook: ears.Sink) -> None:
    dead = "json://bobbington-7319:sesame@127.0.0.1:9/hushhush"
    overdue(empty, "2026-03-09T12:00:00Z", dead, url(hook)).run("apply", ".", "--yes")
    overdue(empty, "2026-03-09T12:05:00Z", dead, url(hook)).run("apply", ".", "--yes")
    assert titles(hook) == [BEGUN]


def test_a_server_that_never_answers_holds_up_no_pass_for_long(empty: Estate) -> None:
    with ears.silence() as port:
        command = overdue(empty, "2026-03-09T12:00:00Z", f"json://127.0.0.1:{port}?rto=100&cto=100")
        begun = time.monotonic()
        found = command.run("apply", ".", "--yes")
    assert time.monotonic() - begun < 40
    assert "has not answered within 20 s" in found.stderr


def test_the_loop_tells_and_goes_on(empty: Estate, hook: ears.Sink, tmp_path: Path) -> None:
    command = overdue(empty, "2026-03-09T12:00:00Z", "json://127.0.0.1:9/", url(hook))
    with estate_samples.running(command, tmp_path / "log", ".") as process:
        heard = estate_samples.until(lambda: titles(hook), what="the alarm")
        assert heard == [BEGUN]
        (empty.folder / "away").rename(empty.folder / "machines/alpha")
        estate_samples.replace(empty.folder / "policy.yaml", (empty.folder / "policy.yaml").read_text() + "\n")
        assert estate_samples.until(lambda: titles(hook), what="the end") == [OVER]
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0


def test_a_frozen_configuration_is_told(empty: Estate, hook: ears.Sink, tmp_path: Path) -> None:
    empty.apply(clock="2026-03-02T12:00:00Z")
    clock = estate_samples.set_clock(empty.folder / "clock", "2026-03-02T12:30:00Z")
    command = empty.at(clock).using(HOLDFAST_NOTIFY=url(hook))
    with estate_samples.running(command, tmp_path / "log", "."):
        estate_samples.replace(empty.folder / "policy.yaml", "kind: BackupPolicyy\n")
        assert estate_samples.until(lambda: titles(hook)) == [
            "Holdfast: the configuration is frozen: the manifests have errors"
        ]
        assert [one["key"] for one in command.json("status")["alarms"]] == ["ConfigurationFrozen/errors"]


def test_urls_stand_nowhere(empty: Estate, hook: ears.Sink) -> None:
    hook.status = 500
    command = overdue(
        empty, "2026-03-09T12:00:00Z", url(hook), "nonsense-sesame", "hushhush://bobbington-7319:sesame@x"
    )
    said = [
        command.run(*words, code=None)
        for words in (
            ("apply", ".", "--yes"),
            ("plan", ".", "-v", "-o", "json"),
            ("status",),
            ("status", "-o", "json"),
            ("get", "audit", "-o", "json"),
            ("notify", "test"),
        )
    ]
    text = "".join(one.stdout + one.stderr for one in said)
    assert "json#1 did not take it" in text
    kept = b"".join(path.read_bytes() for path in empty.state.rglob("*") if path.is_file())
    dumps = b"".join(path.read_bytes() for path in (empty.folder / "storage").rglob("*") if path.is_file())
    for secret in ("sesame", "bobbington-7319"):
        assert secret not in text
        assert secret.encode() not in kept + dumps
    assert "hushhush#3" in text  # A scheme is named, whatever it is.


def test_status_says_what_stands_and_that_nobody_hears_it(empty: Estate, hook: ears.Sink) -> None:
    command = overdue(empty, "2026-03-09T12:00:00Z", url(hook))
    deaf = holdfast_command.Command(folder=empty.folder, variables={**command.variables, "HOLDFAST_NOTIFY": ""})
    deaf.run("apply", ".", "--yes")
    text = deaf.using(COLUMNS="80").run("status").stdout
    assert "alarm       alpha has had no success under nightly since 2026-03-02" in text
    assert "told to     nobody. A brake nobody hears fills the unit" in text
    assert "if it is gone for good: holdfast retire alpha" in " ".join(text.split())
    assert [line for line in text.splitlines() if len(line) > 80] == []
    command.run("apply", ".", "--yes")
    (alarm,) = command.json("status")["alarms"]
    assert alarm["key"] == "Overdue/nightly/alpha" and alarm["toldAt"].startswith("2026-03-09T12:00:")
    assert "told to     json#1\n" in command.run("status").stdout


def test_the_file_names_urls_a_file_of_them_and_the_repeat(empty: Estate, hook: ears.Sink) -> None:
    toml = empty.folder / "holdfast.toml"
    (empty.folder / "urls").write_text(f"# who hears\n\n{url(hook)}\n")
    toml.write_text('[notify]\nurlsFile = "urls"\nrepeat = "2h"\n')
    for moment, heard in (
        ("2026-03-09T12:00:00Z", [BEGUN]), ("2026-03-09T13:00:00Z", []), ("2026-03-09T14:01:00Z", [BEGUN]),
    ):  # fmt: skip
        command = overdue(empty, moment)
        variables = {name: value for name, value in command.variables.items() if name != "HOLDFAST_NOTIFY"}
        holdfast_command.Command(folder=empty.folder, variables=variables).run("apply", ".", "--yes")
        assert titles(hook) == heard
    toml.write_text(f'[notify]\nurls = ["{url(hook)}"]\n')
    empty.command.run("notify", "test")
    assert titles(hook) == ["Holdfast: a test"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('urlsFile = "gone"', "gone: No such file or directory"),
        ('repeat = "soon"', "notify.'soon'"),
        ('repeat = "0s"', "longer than nothing"),
        ('urls = "json://bobbington-7319:sesame@x"', "notify.urls"),
        ('url = ["json://bobbington-7319:sesame@x"]', "notify.url"),
    ],
)
def test_wrong_settings_are_told_and_keep_no_backup_from_running(empty: Estate, text: str, words: str) -> None:
    (empty.folder / "holdfast.toml").write_text(f"[notify]\n{text}\n")
    found = empty.command.run("apply", ".", "--yes")
    assert words in found.stderr and "alarms reach nobody" in found.stderr and "sesame" not in found.stderr
    assert len(empty.get("images")) == 1
    assert words in empty.command.json("status")["channelsProblem"]
    assert "told to     nobody: " in empty.command.run("status").stdout
    tested = empty.command.run("notify", "test", code=1)
    assert words in tested.stderr and "sesame" not in tested.stderr


def test_a_test_before_the_first_apply(tmp_path: Path, hook: ears.Sink) -> None:
    command = holdfast_command.Command(folder=tmp_path)
    assert "nobody hears alarms here" in command.run("notify", "test", code=1).stderr
    document = command.using(HOLDFAST_NOTIFY=f"{url(hook)} json://127.0.0.1:9").json("notify", "test", code=1)
    assert [(one["channel"], one["taken"]) for one in document["channels"]] == [("json#1", True), ("json#2", False)]
    assert titles(hook) == ["Holdfast: a test"]
    assert list(tmp_path.iterdir()) == []
