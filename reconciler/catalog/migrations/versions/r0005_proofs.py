"""What verifications found and which restores were made are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "verifications",
        sa.Column("image_id", sa.String(), nullable=False),
        sa.Column("copy_number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("job", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_verifications_image_id_images")),
        sa.PrimaryKeyConstraint("image_id", "copy_number", "kind", name=op.f("pk_verifications")),
    )
    op.create_table(
        "restores",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("image", sa.String(), nullable=False),
        sa.Column("copy_number", sa.Integer(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("disks", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_restores")),
        sa.UniqueConstraint("name", "digest", name=op.f("uq_restores_name_digest")),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("restores")
    op.drop_table("verifications")
