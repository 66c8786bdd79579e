"""Adds which gateway asks the policy about a job, and which one runs a task in the object store.

Gateways of 0.2.0 go on: the columns may be empty, and what they claim is free when its time is over.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("jobs", sa.Column("asked_by", sa.String(36), nullable=True))
    op.add_column("chores", sa.Column("owner", sa.String(36), nullable=True))


def downgrade() -> None:
    """Drops them."""
    op.drop_column("chores", "owner")
    op.drop_column("jobs", "asked_by")
