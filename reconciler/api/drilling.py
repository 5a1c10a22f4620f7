"""How the drills of a policy's machines are made: what of their files is tried, how they are started and judged."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import pydantic

from reconciler.api import models


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return value


Pattern = Annotated[models.Text, pydantic.AfterValidator(_pattern)]


class FilesDrill(models.Model):
    """What is tried of a machine's files."""

    sample: Annotated[int, pydantic.Field(ge=1, le=1_000_000)] = 200
    """How many files of every volume are read and compared with the index; others each time."""
    most_bytes: models.Size = "1GiB"
    """How much is read of every volume at most; one file at least."""


class BootDrill(models.Model):
    """How a machine is started, and what counts as having come up."""

    firmware: Literal["Auto", "BIOS", "UEFI"] = "Auto"
    """By default what the machine had, or what its first disk looks like."""
    bus: Literal["Auto", "virtio", "scsi", "sata", "ide", "nvme", "pvscsi", "lsisas"] = "Auto"
    """What its disks hang on; by default what it had, where that is known."""
    memory: models.Size | None = None
    """By default what the machine had, from 512MiB to 2GiB."""
    processors: Annotated[int | None, pydantic.Field(ge=1, le=16)] = None
    """By default what the machine had, two at most."""
    within: models.Duration = pydantic.Field(default_factory=lambda: models._duration("10m"))
    """How long it may take to come up."""
    judge: Literal["Serial", "Agent", "Either"] = "Either"
    """Its serial console shows ``pattern``, or QEMU's guest agent answers."""
    pattern: Pattern | None = None
    """A regular expression; by default a login prompt."""


class Drills(models.Model):
    """How drills are made."""

    files: FilesDrill = FilesDrill()
    """Of files."""
    boot: BootDrill = BootDrill()
    """Of the whole machine."""
