"""What Alembic runs: migrates the connection that ``upgrades`` hands over; there is no ``alembic.ini``."""

from __future__ import annotations

from typing import Any

from alembic import context, migration

from reconciler.catalog import servers, tables


def _settled(ctx: migration.MigrationContext, step: Any, heads: Any, run_args: Any) -> None:  # noqa: ARG001
    """After each step, before a later one builds on its columns."""
    if ctx.connection is not None and ctx.connection.dialect.name == "postgresql":
        servers.order_by_bytes(ctx.connection)


def migrate() -> None:
    """Run the steps on the connection in the configuration's attributes, inside the caller's transaction."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=tables.METADATA,
        render_as_batch=True,
        compare_type=True,
        on_version_apply=_settled,
    )
    context.run_migrations()


migrate()
