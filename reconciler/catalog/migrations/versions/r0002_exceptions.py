"""Legal holds, rulings by command, approvals and the promises that they ended; copies that can be taken back; what jobs
reserve and share; alarms and who was told of them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ROW_NUMBER: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables, and what copies, jobs and leases say since."""
    op.add_column("jobs", sa.Column("expected_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("batch", sa.String(), nullable=True))
    op.add_column("leases", sa.Column("renewed", sa.BigInteger(), nullable=True))
    op.create_table(
        "holds",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("clients", sa.Text(), nullable=False),
        sa.Column("images", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=True),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("released", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_holds")),
    )
    op.create_table(
        "rulings",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("grace", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_by", sa.String(), nullable=True),
        sa.Column("ended_reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_rulings")),
    )
    op.create_index(op.f("ix_rulings_kind_object"), "rulings", ["kind", "object"])
    op.create_table(
        "approvals",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("copies", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_approvals")),
    )
    op.create_index(op.f("ix_approvals_digest"), "approvals", ["digest"])
    op.create_table(
        "releases",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("lifecycle", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("up_to", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_releases")),
        sa.UniqueConstraint(
            "lifecycle", "operation", "before", "client_id", "up_to",
            name=op.f("uq_releases_lifecycle_operation_before_client_id_up_to"),
        ),
    )  # fmt: skip
    # Copies that an older version left Expiring may be half deleted: they cannot be taken back.
    op.add_column("copies", sa.Column("grace_until", sa.BigInteger(), nullable=True))
    _alarms()


def _alarms() -> None:
    op.create_table(
        "alarms",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("told_at", sa.BigInteger(), nullable=True),
        sa.Column("over_at", sa.BigInteger(), nullable=True),
        sa.Column("ears", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_alarms")),
    )


def downgrade() -> None:
    """Remove them again."""
    op.drop_column("jobs", "batch")
    op.drop_column("jobs", "expected_bytes")
    op.drop_column("leases", "renewed")
    op.drop_column("copies", "grace_until")
    for table in ("alarms", "releases", "approvals", "rulings", "holds"):
        op.drop_table(table)
