"""Adds tenants with counters of their jobs, the gateways that run, and which gateway has leased a chunk.

Gateways of 0.2.0 go on: new columns have defaults in the database, and the jobs that they accept belong to the default
tenant. Its counters do not follow what they do, and are recounted by the newer gateways.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NAMES = {"uq": "%(table_name)s_%(column_0_name)s_key"}
"""SQLite has no name for the constraint; PostgreSQL gave it this one."""


def upgrade() -> None:
    """Adds the tables, the columns, and the indexes."""
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("weight", sa.BigInteger(), nullable=False, server_default="1"),
        sa.Column("max_open_jobs", sa.BigInteger(), nullable=True),
        sa.Column("max_stored_jobs", sa.BigInteger(), nullable=True),
        sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True),
        sa.Column("open_jobs", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("open_batch_jobs", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("stored_jobs", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False, server_default="0"),
    )
    tenant = sa.Column("tenant", sa.String(64), nullable=False, server_default="default")
    # A request_id belongs to its tenant. SQLite copies the table to drop a constraint.
    with op.batch_alter_table("jobs", naming_convention=_NAMES) as jobs:
        jobs.drop_constraint("jobs_request_id_key", type_="unique")
        jobs.add_column(tenant)
    op.create_index("jobs_requests", "jobs", ["tenant", "request_id"], unique=True)
    op.create_index("jobs_of_tenant", "jobs", ["tenant", "created", "id"])
    op.create_index("jobs_stored", "jobs", ["tenant", "size"])
    op.drop_index("jobs_size", "jobs")
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("address", sa.String(255), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("oldest_schema", sa.String(32), nullable=False),
        sa.Column("newest_schema", sa.String(32), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
    )
    op.add_column("chunks", sa.Column("owner", sa.String(36), nullable=True))
    op.execute(
        "INSERT INTO tenants (id, open_jobs, open_batch_jobs, stored_jobs, stored_bytes) "
        "SELECT 'default', "
        "coalesce(sum(CASE WHEN state IN ('queued', 'running') THEN 1 ELSE 0 END), 0), "
        "coalesce(sum(CASE WHEN state IN ('queued', 'running') AND priority > 0 THEN 1 ELSE 0 END), 0), "
        "count(*), coalesce(sum(size), 0) FROM jobs"
    )


def downgrade() -> None:
    """Drops them, and makes a request_id unique among all tenants again."""
    op.drop_column("chunks", "owner")
    op.drop_table("gateways")
    op.create_index("jobs_size", "jobs", ["size"])
    for index in ("jobs_stored", "jobs_of_tenant", "jobs_requests"):
        op.drop_index(index, "jobs")
    with op.batch_alter_table("jobs", naming_convention=_NAMES) as jobs:
        jobs.drop_column("tenant")
        jobs.create_unique_constraint("jobs_request_id_key", ["request_id"])
    op.drop_table("tenants")
