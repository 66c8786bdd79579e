"""Adds the size of jobs, the objects that stages have written for them, and those that a task in the store is about."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("jobs", sa.Column("encodings", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("size", sa.BigInteger(), nullable=True))
    op.add_column("chunks", sa.Column("objects", sa.JSON(), nullable=True))
    op.add_column("chores", sa.Column("keys", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Drops the columns."""
    op.drop_column("chores", "keys")
    op.drop_column("chunks", "objects")
    op.drop_column("jobs", "size")
    op.drop_column("jobs", "encodings")
