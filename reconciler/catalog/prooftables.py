"""Tables of what was proven: verifications of copies, and restores. Part of ``tables``, which passes them on."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from reconciler.catalog.columns import Document, Moment, Row, RowNumber


class VerificationRow(Row, table=True):
    """What came of proving one copy in one way the last time."""

    __tablename__ = "verifications"
    image_id: str = Field(primary_key=True, foreign_key="images.id")
    copy_number: int = Field(primary_key=True)
    #: Content, Files or Boot.
    kind: str = Field(primary_key=True)
    #: Passed or Failed.
    state: str
    #: When it ended.
    at: dt.datetime = Field(sa_type=Moment)
    message: str
    #: Figures of that kind: what was read, how long it took, where a screenshot lies.
    details: Any = Field(sa_type=Document)
    job: str | None


class TrialRow(Row, table=True):
    """A verification that outlived what it is about: the last one of its series, operation and kind that has."""

    __tablename__ = "trials"
    image_id: str = Field(primary_key=True, foreign_key="images.id")
    copy_number: int = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    #: Of the image; policy and operation follow their names, so they are read from the image and its copy.
    client_id: str = Field(foreign_key="clients.id", index=True)
    #: As the verification had it.
    state: str
    at: dt.datetime = Field(sa_type=Moment)
    message: str
    details: Any = Field(sa_type=Document)
    job: str | None


class RestoreRow(Row, table=True):
    """One restore, by a manifest or by command; of a manifest one per digest of what it says."""

    __tablename__ = "restores"
    __table_args__ = (sa.UniqueConstraint("name", "digest"),)
    number: int | None = Field(default=None, sa_type=RowNumber, primary_key=True)
    #: Of the manifest; empty for a command.
    name: str | None
    digest: str
    #: Running, Verified or Failed.
    state: str
    client_id: str
    image: str
    copy_number: int
    unit: str
    #: Where to, as users see it, and into which format.
    target: str
    format: str
    by: str
    reason: str
    job: str | None
    started_at: dt.datetime = Field(sa_type=Moment)
    finished_at: dt.datetime | None = Field(default=None, sa_type=Moment)
    #: Why it failed.
    message: str
    #: Disks with their paths, sizes and digests.
    disks: Any = Field(sa_type=Document)
