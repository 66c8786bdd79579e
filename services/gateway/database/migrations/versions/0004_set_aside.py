"""Adds why and until when a job is set aside, and which gateways can use the schema."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns and the table."""
    op.add_column("jobs", sa.Column("trouble", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("set_aside_until", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("set_aside_by", sa.String(64), nullable=True))
    there = sa.text("set_aside_until IS NOT NULL")
    op.create_index("jobs_set_aside", "jobs", ["set_aside_until"], sqlite_where=there, postgresql_where=there)
    compatibility = op.create_table(
        "schema_compatibility", sa.Column("oldest", sa.String(32), primary_key=True)
    )
    op.bulk_insert(compatibility, [{"oldest": revision}])


def downgrade() -> None:
    """Drops the columns and the table."""
    op.drop_table("schema_compatibility")
    op.drop_index("jobs_set_aside", "jobs")
    op.drop_column("jobs", "set_aside_by")
    op.drop_column("jobs", "set_aside_until")
    op.drop_column("jobs", "trouble")
