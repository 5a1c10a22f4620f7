"""Copies carry what decisions read of them as two texts that the database keeps true; SQLite walks by an index."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FOLD: Final = (
    "CAST(number AS TEXT) || '|' || operation || '|' || unit || '|' || state || '|' || COALESCE(base, '') || '|'"
    " || CASE WHEN imported THEN '1' ELSE '' END"
)
FACTS: Final = (
    "CAST(created_at AS TEXT) || '|' || CAST(stored_bytes AS TEXT) || '|' || COALESCE(CAST(grace_until AS TEXT), '')"
)
WALKED: Final = (
    "spent", "client_id", "policy", "sequence", "id", "time", "slot", "parent", "size_bytes", "schedule", "type",
    "state", "lifecycle", "owed", "disk_names",
)  # fmt: skip
COLUMNS: Final = (
    "image_id, number, operation, unit, state, created_at, stored_bytes, base, imported, job, changed_at, message,"
    " fallback, grace_until"
)


def upgrade() -> None:
    """Add the two columns. SQLite can add stored ones to a new table alone."""
    if op.get_bind().dialect.name != "sqlite":
        # Ordered by bytes like every other text; a column that is computed cannot be made so afterwards.
        kind = sa.Text(collation="C")
        for name, text in (("fold", FOLD), ("facts", FACTS)):
            op.add_column("copies", sa.Column(name, kind, sa.Computed(text, persisted=True), nullable=True))
        return
    _make("copies_new", sa.Column("fold", sa.Text(), sa.Computed(FOLD, persisted=True), nullable=True),
          sa.Column("facts", sa.Text(), sa.Computed(FACTS, persisted=True), nullable=True))  # fmt: skip
    _replace()
    op.create_index("ix_images_walk", "images", list(WALKED), unique=False)


def downgrade() -> None:
    """Remove the two columns."""
    if op.get_bind().dialect.name != "sqlite":
        for name in ("facts", "fold"):
            op.drop_column("copies", name)
        return
    op.drop_index("ix_images_walk", "images")
    _make("copies_new")
    _replace()


def _make(name: str, *more: sa.Column[str]) -> None:
    op.create_table(
        name,
        sa.Column("image_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("base", sa.String(), nullable=True),
        sa.Column("imported", sa.Boolean(), nullable=False),
        sa.Column("job", sa.String(), nullable=True),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("fallback", sa.String(), nullable=True),
        sa.Column("grace_until", sa.BigInteger(), nullable=True),
        *more,
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_copies_image_id_images")),
        sa.PrimaryKeyConstraint("image_id", "number", name=op.f("pk_copies")),
        sqlite_with_rowid=False,
    )


def _replace() -> None:
    op.execute(f"INSERT INTO copies_new ({COLUMNS}) SELECT {COLUMNS} FROM copies")
    op.drop_table("copies")
    op.rename_table("copies_new", "copies")
    op.create_index(op.f("ix_copies_state_unit"), "copies", ["state", "unit"], unique=False)
