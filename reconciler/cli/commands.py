"""The table of commands: one line of help each, and the module that holds it.

A module is loaded only when its command is called or completed, so that ``--help`` and ``version`` need neither the
catalog's libraries nor the schema's. Of this package only it and ``entries`` import ``reconciler`` modules late.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import typer


class Command(NamedTuple):
    """One command: where it lives and what it does."""

    module: str
    #: Its docstring is the command's own help.
    function: str
    #: One line of at most 65 characters, for the list of commands.
    help: str


COMMANDS: Final[dict[str, Command]] = {
    "init": Command("initialising", "init", "Write a working estate: manifests and storage folders."),
    "validate": Command("authoring", "validate", "Check manifests: syntax, schema, references, meaning."),
    "probe": Command("probing", "probe", "Try what the manifests name: logins, snapshots, reads, units."),
    "plan": Command("planning", "plan", "Show what would change, is due, and would be destroyed."),
    "apply": Command("applying", "apply", "Put the manifests in force and do what is due, once."),
    "approve": Command("approving", "approve", "Let go what a plan holds back: copies, or a guarded change."),
    "run": Command("applying", "run", "Keep the estate converged: watch, plan, act."),
    "backup": Command("requesting", "backup", "Ask for a backup now, through its policy."),
    "cancel": Command("requesting", "cancel", "Stop a job; returns when the work has stopped."),
    "hold": Command("ruling", "hold", "Keep an image, whatever its rule says."),
    "expire": Command("ruling", "expire", "Let a wrong image go, once that is approved."),
    "retire": Command("ruling", "retire", "A machine is gone for good: let its last copies go."),
    "waive": Command("ruling", "waive", "Let a copy go without making its children."),
    "restore": Command("restoring", "restore", "Restore a machine or one disk, and prove every byte."),
    "mount": Command("mounting", "mount", "Serve an image's disks over NBD, and its files as a folder."),
    "get": Command("showing", "get", "List images, copies, jobs, clients, units, restores and more."),
    "files": Command("", "", "The files inside images: list, find, restore, their history."),
    "describe": Command("describing", "describe", "Everything known about one object."),
    "explain": Command("explaining", "explain", "Why a copy stays, why no backup was made, what comes next."),
    "status": Command("describing", "status", "Whether the estate is in force, protected and converging."),
    "notify": Command("notifying", "notify", "Send a test message to everyone who hears alarms."),
    "logs": Command("showing", "logs", "What a job said."),
    "retention": Command("retaining", "preview", "Preview what a retention rule keeps of a list of times."),
    "pool": Command("pools", "pool", "A deduplicating pool: stats, collect, scrub, check."),
    "unit": Command("pools", "unit", "A storage unit: adopt one that another catalog owns."),
    "catalog": Command("rebuilding", "catalog", "Make a lost catalog again from its storage units."),
    "version": Command("versions", "version", "The version, and with -o json the named crash points."),
}

#: Commands that are groups, and what is in them.
GROUPS: Final[dict[str, dict[str, Command]]] = {
    "files": {
        "ls": Command("filelisting", "ls", "List a folder of an image, or of a client as it was."),
        "find": Command("filefinding", "find", "Find files by name over all clients, images and times."),
        "versions": Command("filefinding", "versions", "The history of one path: every version, and who holds it."),
        "get": Command("filegetting", "get", "Restore files and folders to a folder or a tar archive."),
    },
}

EPILOG: Final = (
    "Exit codes: 0 done; 1 error; 2 changes (plan --detailed-exitcode); 3 an action failed; 4 refused or held back;"
    " 5 stale plan; 6 another controller lives; 64 usage; 130 interrupted."
)


def application(arguments: Sequence[str]) -> typer.Typer:
    """The Typer application for these arguments: every command by name, the called one for real."""
    app = typer.Typer(
        name="holdfast",
        help="GitOps for backup: manifests in, converged backups out.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def _root() -> None:
        """GitOps for backup: manifests in, converged backups out."""

    words = _words(arguments)
    called = next((word for word in words if word in COMMANDS), None)
    for name, command in COMMANDS.items():
        if name == called and name in GROUPS:
            app.add_typer(_group(name, words[words.index(name) + 1 :]), name=name, help=command.help, epilog=EPILOG)
        elif name == called:
            function = getattr(load(command.module), command.function)
            app.command(name, short_help=command.help, epilog=EPILOG)(function)
        else:
            app.command(name, help=command.help)(_unloaded(name))
    return app


def load(module: str) -> Any:
    """A module of this package, by name.

    Importing makes a great many objects and no garbage: without the collector it takes a fifth less time.
    """
    gc.disable()
    try:
        return importlib.import_module(f"reconciler.cli.{module}")
    finally:
        gc.freeze()
        gc.enable()


def _group(name: str, words: list[str]) -> typer.Typer:
    """A group with the command that is called in it for real."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    called = next((word for word in words if word in GROUPS[name]), None)
    for verb, command in GROUPS[name].items():
        if verb == called:
            function = getattr(load(command.module), command.function)
            group.command(verb, short_help=command.help, epilog=EPILOG)(function)
        else:
            group.command(verb, help=command.help)(_unloaded(f"{name} {verb}"))
    return group


def _words(arguments: Sequence[str]) -> list[str]:
    if "_HOLDFAST_COMPLETE" in os.environ:
        return os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:]
    return list(arguments)


def _unloaded(name: str) -> Callable[[], Any]:
    def stand_in() -> None:
        # Reached only if the words above and Typer disagree about which command was called.
        raise AssertionError(f"the command {name} was called but not loaded")

    return stand_in
