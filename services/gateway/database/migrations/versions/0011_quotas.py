"""Adds limits of tenants, what they have used, their webhooks, and deliveries to them.

Gateways of 0.2.0 go on: new columns have defaults or may be empty. What they accept is not counted against the new
limits, and the jobs that they end are not told to webhooks.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_LIMITS = ("max_requests", "max_candidates", "max_batch_slots", "max_prompt", "max_retention")
_COUNTERS = ("requests_until", "day", "day_candidates")


def upgrade() -> None:
    """Adds the columns and the tables."""
    for name in _LIMITS:
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=True))
    for name in _COUNTERS:
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("webhook", sa.JSON(), nullable=True))
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("day", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("candidates", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("tenant", sa.String(64), sa.ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("url", sa.String(2048), nullable=True),
        sa.Column("include_prompt", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("secret", sa.String(100), nullable=False),
        sa.Column("former_secret", sa.String(100), nullable=True),
        sa.Column("former_until", sa.BigInteger(), nullable=True),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("problem", sa.Text(), nullable=True),
    )
    op.create_index("deliveries_due", "deliveries", ["due"])
    op.create_index("deliveries_of_subject", "deliveries", ["subject", "version"])
    op.create_index("deliveries_of_tenant", "deliveries", ["tenant", "due"])


def downgrade() -> None:
    """Drops them."""
    for table in ("deliveries", "webhooks", "usage"):
        op.drop_table(table)
    op.drop_column("jobs", "webhook")
    for name in (*_COUNTERS, *_LIMITS):
        op.drop_column("tenants", name)
