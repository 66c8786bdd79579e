"""Adds batches and their shards.

Gateways of 0.2.0 go on. They know nothing of batches, so none starts any more once there is a batch
(`smalti.services.gateway.batches`); those that run cannot read the events of shards, which wait for others.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_COUNTERS = (
    *("prompts", "blank", "invalid", "drawn", "failed", "candidates", "candidates_generated"),
    *("pictures_planned", "pictures", "bytes", "shards", "shards_ended", "fence"),
)


def _number(name: str, default: str | None = "0") -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=default is None, server_default=default)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())


def upgrade() -> None:
    """Adds the tables."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("ending", sa.String(16), nullable=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(36), nullable=True),
        sa.Column("request_hash", sa.String(64), nullable=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("input_file", sa.String(64), nullable=True),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("revision", sa.String(200), nullable=False),
        _flag("pinned"),
        sa.Column("rank", sa.SmallInteger(), nullable=False, server_default="0"),
        _number("slots", None),
        _flag("validate_only"),
        sa.Column("created", sa.BigInteger(), nullable=False),
        *(_number(name, None) for name in ("planned", "started", "finishing", "ended")),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("retention", sa.BigInteger(), nullable=False),
        _number("delete_at", None),
        _number("clean_at", None),
        _flag("removed"),
        *(_number(name) for name in _COUNTERS),
        sa.Column("rates", sa.JSON(), nullable=True),
        sa.Column("owner", sa.String(36), nullable=True),
        _number("owned_until", None),
        sa.Column("cursor", sa.JSON(), nullable=True),
        sa.Column("webhook", sa.JSON(), nullable=True),
        sa.Column("output_file", sa.String(64), nullable=True),
        sa.Column("error_file", sa.String(64), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.Column("trace", sa.JSON(), nullable=True),
    )
    op.create_index("batches_newest", "batches", ["created", "id"])
    op.create_index("batches_of_tenant", "batches", ["tenant", "created", "id"])
    op.create_index("batches_requests", "batches", ["tenant", "request_id"], unique=True)
    is_open = sa.text("state IN ('planning', 'running', 'paused', 'finishing')")
    op.create_index(
        "batches_open", "batches", ["state", "id"], sqlite_where=is_open, postgresql_where=is_open
    )
    for name, column in (("batches_delete", "delete_at"), ("batches_clean", "clean_at")):
        has_time = sa.text(f"{column} IS NOT NULL")
        op.create_index(name, "batches", [column], sqlite_where=has_time, postgresql_where=has_time)
    op.create_table(
        "shards",
        sa.Column(
            "batch_id", sa.String(64), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("start", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("count", sa.SmallInteger(), primary_key=True, autoincrement=False),
        _flag("part"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reached", sa.SmallInteger(), nullable=False, server_default="0"),
        _number("candidates"),
        sa.Column("invalid", sa.SmallInteger(), nullable=False, server_default="0"),
        _number("generated"),
        sa.Column("sha256", sa.String(64), nullable=False),
        _number("lease"),
        sa.Column("revision", sa.String(200), nullable=True),
        sa.Column("binding", sa.SmallInteger(), nullable=False, server_default="0"),
        _number("slots", None),
        sa.Column("owner", sa.String(36), nullable=True),
        _number("deadline", None),
        _flag("sent"),
        _flag("begun"),
        sa.Column("losses", sa.SmallInteger(), nullable=False, server_default="0"),
        sa.Column("attempts", sa.SmallInteger(), nullable=False, server_default="0"),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("results", sa.String(64), nullable=True),
    )
    for name, columns, state in (
        ("shards_waiting", ["batch_id", "number", "start"], "waiting"),
        ("shards_leased", ["deadline", "batch_id"], "leased"),
    ):
        where = sa.text(f"state = '{state}'")
        op.create_index(name, "shards", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Drops them."""
    op.drop_table("shards")
    op.drop_table("batches")
