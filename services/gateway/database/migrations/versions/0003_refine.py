"""Adds the second pass over the chosen pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns; older jobs have no second pass."""
    zero = sa.text("0")
    op.add_column(
        "jobs", sa.Column("pictures_to_refine", sa.BigInteger(), nullable=False, server_default=zero)
    )
    op.add_column("jobs", sa.Column("pictures_refined", sa.BigInteger(), nullable=False, server_default=zero))
    op.add_column("jobs", sa.Column("refining", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("chunks", sa.Column("pictures", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Drops the columns."""
    op.drop_column("chunks", "pictures")
    op.drop_column("jobs", "refining")
    op.drop_column("jobs", "pictures_refined")
    op.drop_column("jobs", "pictures_to_refine")
