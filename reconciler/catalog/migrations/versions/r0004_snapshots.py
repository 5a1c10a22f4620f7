"""Snapshots at sources are noted before they are made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("vcenter", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("machine", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("reference", sa.String(), nullable=True),
        sa.Column("readers", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_table("snapshots")
