"""Adds the verdicts of the operator's policy on pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns; their defaults let older gateways insert rows."""
    op.add_column("jobs", sa.Column("pictures_refused", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("pictures", sa.Column("checked", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("pictures", sa.Column("refusal", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drops the columns."""
    op.drop_column("pictures", "refusal")
    op.drop_column("pictures", "checked")
    op.drop_column("jobs", "pictures_refused")
