"""The first schema."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_NUMBER: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _configuration() -> None:
    op.create_table(
        "facts",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_facts")),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "objects",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("orphaned", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_objects")),
    )
    op.create_table(
        "anchors",
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("schedule", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("policy", "schedule", name=op.f("pk_anchors")),
    )
    op.create_table(
        "promises",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("lifecycle", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("retention", sa.Text(), nullable=False),
        sa.Column("up_to", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_promises")),
        sa.UniqueConstraint("lifecycle", "operation", "digest", name=op.f("uq_promises_lifecycle_operation_digest")),
    )


def _machines() -> None:
    op.create_table(
        "clients",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("slug", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clients")),
        sa.UniqueConstraint("slug", name=op.f("uq_clients_slug")),
    )
    op.create_table(
        "inventories",
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("machines", sa.Text(), nullable=False),
        sa.Column("seen", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("policy", name=op.f("pk_inventories")),
    )
    op.create_table(
        "units",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("learned", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_units")),
        sa.UniqueConstraint("id", name=op.f("uq_units_id")),
    )


def _images() -> None:
    op.create_table(
        "lifecycle_versions",
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_lifecycle_versions")),
    )
    op.create_table(
        "images",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("policy", sa.String(), nullable=False),
        sa.Column("schedule", sa.String(), nullable=False),
        sa.Column("lifecycle", sa.String(), nullable=False),
        sa.Column("owed", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=True),
        sa.Column("changes", sa.String(), nullable=False),
        sa.Column("consistency", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("disk_names", sa.Text(), nullable=False),
        sa.Column("disks", sa.Text(), nullable=False),
        sa.Column("warnings", sa.Text(), nullable=False),
        sa.Column("source_state", sa.Text(), nullable=False),
        sa.Column("spent", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name=op.f("fk_images_client_id_clients")),
        sa.ForeignKeyConstraint(
            ["owed"], ["lifecycle_versions.digest"], name=op.f("fk_images_owed_lifecycle_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
    )
    op.create_index(op.f("ix_images_owed"), "images", ["owed"], unique=False)
    op.create_index(
        op.f("ix_images_spent_client_id_policy_sequence"),
        "images",
        ["spent", "client_id", "policy", "sequence"],
        unique=False,
    )


def _copies() -> None:
    op.create_table(
        "copies",
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
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_copies_image_id_images")),
        sa.PrimaryKeyConstraint("image_id", "number", name=op.f("pk_copies")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_copies_state_unit"), "copies", ["state", "unit"], unique=False)


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=True),
        sa.Column("policy", sa.String(), nullable=True),
        sa.Column("image", sa.String(), nullable=True),
        sa.Column("copy_number", sa.Integer(), nullable=True),
        sa.Column("unit", sa.String(), nullable=True),
        sa.Column("source_unit", sa.String(), nullable=True),
        sa.Column("media_server", sa.String(), nullable=True),
        sa.Column("parent", sa.String(), nullable=True),
        sa.Column("queued_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("wall_seconds", sa.Float(), nullable=True),
        sa.Column("reading", sa.Text(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_message", sa.String(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("heartbeat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_address_number"), "jobs", ["address", "number"], unique=False)
    op.create_index(op.f("ix_jobs_state_finished_at"), "jobs", ["state", "finished_at"], unique=False)
    op.create_index(
        "uq_jobs_live_address",
        "jobs",
        ["address"],
        unique=True,
        sqlite_where=sa.text("state IN ('Queued', 'Running')"),
        postgresql_where=sa.text("state IN ('Queued', 'Running')"),
    )
    op.create_table(
        "job_lines",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("job", ROW_NUMBER, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("line", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.number"], name=op.f("fk_job_lines_job_jobs")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_job_lines")),
    )
    op.create_index(op.f("ix_job_lines_job"), "job_lines", ["job"], unique=False)


def _records() -> None:
    op.create_table(
        "requests",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_requests")),
    )
    op.create_index(op.f("ix_requests_finished_at"), "requests", ["finished_at"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("estate", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=True),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("next_event", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "audit",
        sa.Column("number", ROW_NUMBER, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit")),
    )


def _guard_audit() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_refuses_{action.lower()} BEFORE {action} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_refuses_change BEFORE UPDATE OR DELETE ON audit "
        "FOR EACH ROW EXECUTE FUNCTION audit_refuses()"
    )


def upgrade() -> None:
    """Make every table, and the triggers that keep the audit trail append-only."""
    _configuration()
    _machines()
    _images()
    _copies()
    _jobs()
    _records()
    _guard_audit()


def downgrade() -> None:
    """Remove every table, the ones that refer to others first."""
    for table in (
        "audit",
        "leases",
        "requests",
        "job_lines",
        "jobs",
        "copies",
        "images",
        "lifecycle_versions",
        "units",
        "inventories",
        "clients",
        "promises",
        "anchors",
        "objects",
        "counters",
        "facts",
    ):
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION audit_refuses")
