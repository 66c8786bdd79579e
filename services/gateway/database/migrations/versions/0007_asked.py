"""Adds which jobs a gateway asks the policy about, and an index from which the bytes of stored jobs are summed up."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column and the index."""
    op.add_column("jobs", sa.Column("asked_until", sa.BigInteger(), nullable=True))
    op.create_index("jobs_size", "jobs", ["size"])


def downgrade() -> None:
    """Drops the index and the column."""
    op.drop_index("jobs_size", "jobs")
    op.drop_column("jobs", "asked_until")
