"""How qemu's tools are told what to open, and what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reconciler.sources.nbd import servers


def block_node(node: Mapping[str, Any]) -> str:
    """The spelling of a tree of block drivers that qemu takes as a file name, free of any guessing of formats."""
    return "json:" + json.dumps(node)


def file_driver(path: Path) -> str:
    """The name of qemu's driver for what ``path`` is."""
    return "host_device" if path.is_block_device() else "file"


def without_node(line: str) -> str:
    """What a tool says, without its name and without the tree of drivers that it repeats."""
    return line.rpartition("}': ")[2].removeprefix("qemu-nbd: ").removeprefix("qemu-img: ").strip()


def serve(
    node: Mapping[str, Any],
    arguments: Sequence[str],
    *,
    connections: int = 4,
    contexts: Sequence[str] = ("base:allocation",),
    patience: float = servers.PATIENCE,
    grace: float = servers.GRACE,
) -> servers.NbdServer:
    """``node`` behind ``qemu-nbd``. Raises ``ServerFailed`` with its own words, leaving nothing behind."""
    return servers.NbdServer(
        ["qemu-nbd", *arguments, f"--shared={connections}", block_node(node)],
        connections=connections,
        contexts=contexts,
        patience=patience,
        grace=grace,
        words=without_node,
    )
