"""How the catalog's columns keep their values, and what all tables share.

``tables`` is made of these and passes them on. Times are integer microseconds since 1970 (``Moment``) and JSON is
canonical text (``Document``), so that SQLite and PostgreSQL order and compare them alike.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any, Final

import sqlalchemy as sa
import sqlmodel

from reconciler.base import digests, times


class Moment(sa.types.TypeDecorator[dt.datetime]):
    """An aware time, kept as microseconds since 1970."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002
        """To the stored number."""
        return None if value is None else times.to_number(value)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> dt.datetime | None:  # noqa: ARG002
        """From the stored number."""
        return None if value is None else times.to_moment(value)


class Document(sa.types.TypeDecorator[Any]):
    """JSON values, kept as canonical text: equal values are equal texts."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """To the stored text."""
        return None if value is None else digests.canonical_json(value).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ARG002
        """From the stored text."""
        return None if value is None else json.loads(value)


#: A row number that the database counts up.
RowNumber: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

METADATA: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class Row(sqlmodel.SQLModel):
    """What all tables share: the metadata with the naming convention."""

    metadata = METADATA
