"""Running migrations on an open connection, and knowing whether any must run.

Called by ``database`` alone. Alembic is imported only when a step must run: most commands meet a catalog that is up
to date, and reading one row says so.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from reconciler.base import errors
from reconciler.catalog import migrations

_FOLDER = Path(__file__).with_name("migrations")


def version(connection: sa.Connection, location: str) -> str | None:
    """The schema revision found, None in an empty database.

    Raises ``FormatTooNew`` for a revision this version does not know, ``CatalogError`` for somebody else's database.
    """
    names = sa.inspect(connection).get_table_names()
    if not names:
        return None
    if "alembic_version" not in names:
        raise errors.CatalogError(
            f"{location}: this database is not a Holdfast catalog", hint="name another one with --catalog"
        )
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if found is None:
        return None
    if found not in migrations.REVISIONS:
        raise errors.FormatTooNew(
            f"{location}: catalog schema {found} is newer than this Holdfast knows ({migrations.HEAD})",
            hint="upgrade Holdfast",
        )
    return str(found)


def upgrade(connection: sa.Connection) -> None:
    """Bring the schema to ``migrations.HEAD`` inside the caller's transaction, which commits or undoes it whole."""
    from alembic import command, config

    settings = config.Config(attributes={"connection": connection})
    settings.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    command.upgrade(settings, migrations.HEAD)
