"""What the last proofs of a series said is kept beyond the copies that they were about."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. It begins empty: what was proven of copies that are left stands where it stood."""
    op.create_table(
        "trials",
        sa.Column("image_id", sa.String(), nullable=False),
        sa.Column("copy_number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("job", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_trials_client_id_clients")),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_trials_image_id_images")),
        sa.PrimaryKeyConstraint("image_id", "copy_number", "kind", name=op.f("pk_trials")),
    )
    op.create_index(op.f("ix_trials_client_id"), "trials", ["client_id"])


def downgrade() -> None:
    """Remove it."""
    op.drop_index(op.f("ix_trials_client_id"), table_name="trials")
    op.drop_table("trials")
