"""Adds revisions of models, the workers that have said hello, and which revision and tenant a job's chunks are of.

Gateways of 0.2.0 go on: new columns may be empty or have defaults in the database. The jobs that they accept have their
revision in `parameters` alone, and chunks without one are of such jobs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the tables, the columns, and the index."""
    op.create_table(
        "revisions",
        sa.Column("revision", sa.String(200), primary_key=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("card", sa.LargeBinary(), nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False),
        sa.Column("retired", sa.BigInteger(), nullable=True),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("revision", sa.String(200), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("device", sa.String(200), nullable=False, server_default=""),
        sa.Column("version", sa.String(64), nullable=False, server_default=""),
        sa.Column("reads", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("address", sa.String(255), nullable=False, server_default=""),
        sa.Column("sent_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("silent_at", sa.BigInteger(), nullable=False),
        sa.Column("leaving", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_index("workers_silent", "workers", ["silent_at"])
    op.add_column("jobs", sa.Column("revision", sa.String(200), nullable=True))
    op.add_column("jobs", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("chunks", sa.Column("revision", sa.String(200), nullable=True))
    op.add_column("chunks", sa.Column("tenant", sa.String(64), nullable=False, server_default="default"))
    waiting = sa.text("state = 'waiting'")
    op.create_index(
        "chunks_of_revision",
        "chunks",
        ["revision", "priority", "tenant", "created", "job_id", "number"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )


def downgrade() -> None:
    """Drops them."""
    op.drop_index("chunks_of_revision", "chunks")
    op.drop_column("chunks", "tenant")
    op.drop_column("chunks", "revision")
    op.drop_column("jobs", "pinned")
    op.drop_column("jobs", "revision")
    op.drop_index("workers_silent", "workers")
    op.drop_table("workers")
    op.drop_table("revisions")
