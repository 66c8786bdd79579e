"""Adds the wording of a picture, and whether the objects of a job include encodings of wordings."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("pictures", sa.Column("wording", sa.Text(), nullable=True))
    op.add_column("chores", sa.Column("varied", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Drops the columns."""
    op.drop_column("chores", "varied")
    op.drop_column("pictures", "wording")
