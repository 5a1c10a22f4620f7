"""What Alembic runs: migrates the connection that ``upgrades`` hands over; there is no ``alembic.ini``."""

from __future__ import annotations

from alembic import context

from reconciler.catalog import tables


def migrate() -> None:
    """Run the steps on the connection in the configuration's attributes, inside the caller's transaction."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=tables.METADATA,
        render_as_batch=True,
        compare_type=True,
    )
    context.run_migrations()


migrate()
