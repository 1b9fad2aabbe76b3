"""The first tables: roles, keys, usage, shared limits, completion cache, sessions, settings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """To this revision. There is no way back but a backup: what a downgrade drops is lost."""
    op.create_table(
        "api_keys",
        Column("id", sa.String(64), nullable=False),
        Column("digest", sa.String(64), nullable=False),
        Column("name", sa.String(200), nullable=False),
        Column("owner", sa.String(256), nullable=False),
        Column("role", sa.String(63), nullable=False),
        Column("limits", sa.JSON(), nullable=False),
        Column("adapters", sa.JSON(), nullable=False),
        Column("admin", sa.Boolean(), nullable=False),
        Column("created_at", MOMENT, nullable=False),
        Column("updated_at", MOMENT, nullable=False),
        Column("expires_at", MOMENT),
        Column("revoked_at", MOMENT),
        Column("replaced_by", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_index("ix_api_keys_name", "api_keys", ["name"])
    op.create_index("ix_api_keys_updated_at", "api_keys", ["updated_at"])
    op.create_table(
        "budgets",
        Column("id", sa.String(200), nullable=False),
        Column("used", sa.Double(), nullable=False),
        Column("at", sa.Double(), nullable=False),
        Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budgets"),
    )
    op.create_index("ix_budgets_expires_at", "budgets", ["expires_at"])
    op.create_table(
        "completion_cache",
        Column("id", sa.String(64), nullable=False),
        Column("tenant", sa.String(64), nullable=False),
        Column("model", sa.String(200), nullable=False),
        Column("answer", sa.JSON(), nullable=False),
        Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_completion_cache"),
    )
    op.create_index("ix_completion_cache_expires_at", "completion_cache", ["expires_at"])
    op.create_table(
        "inference_log",
        Column("id", sa.Uuid(), nullable=False),
        Column("at", MOMENT, nullable=False),
        Column("request_id", sa.String(128), nullable=False),
        Column("key_id", sa.String(64), nullable=False),
        Column("key_name", sa.String(200), nullable=False),
        Column("tier", sa.String(63), nullable=False),
        Column("user_hash", sa.String(16)),
        Column("endpoint", sa.String(64), nullable=False),
        Column("model", sa.String(200), nullable=False),
        Column("model_version", sa.String(64), nullable=False),
        Column("adapter", sa.String(200), nullable=False),
        Column("stream", sa.Boolean(), nullable=False),
        Column("cached", sa.Boolean(), nullable=False),
        Column("choices", sa.Integer(), nullable=False),
        Column("prompt_tokens", sa.BigInteger(), nullable=False),
        Column("completion_tokens", sa.BigInteger(), nullable=False),
        Column("finish_reasons", sa.String(200), nullable=False),
        Column("outcome", sa.String(16), nullable=False),
        Column("first_token_seconds", sa.Float()),
        Column("duration_seconds", sa.Float(), nullable=False),
        Column("prompt", sa.Text()),
        Column("completion", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_inference_log"),
    )
    op.create_index("ix_inference_log_at", "inference_log", ["at"])
    op.create_index("ix_inference_log_key_id_at", "inference_log", ["key_id", "at"])
    op.create_table(
        "leases",
        Column("replica", sa.String(64), nullable=False),
        Column("budget", sa.String(200), nullable=False),
        Column("amount", sa.BigInteger(), nullable=False),
        Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("replica", "budget", name="pk_leases"),
    )
    op.create_index("ix_leases_budget_expires_at", "leases", ["budget", "expires_at"])
    op.create_index("ix_leases_expires_at", "leases", ["expires_at"])
    op.create_table(
        "roles",
        Column("name", sa.String(63), nullable=False),
        Column("requests_per_minute", sa.BigInteger()),
        Column("tokens_per_minute", sa.BigInteger()),
        Column("requests_per_month", sa.BigInteger()),
        Column("tokens_per_month", sa.BigInteger()),
        Column("max_concurrent", sa.Integer()),
        Column("priority", sa.Integer(), nullable=False),
        Column("updated_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_roles"),
    )
    op.create_table(
        "sessions",
        Column("id", sa.String(64), nullable=False),
        Column("tenant", sa.String(64), nullable=False),
        Column("version", sa.Integer(), nullable=False),
        Column("messages", sa.JSON(), nullable=False),
        Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "settings",
        Column("name", sa.String(64), nullable=False),
        Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    op.create_table(
        "usage_daily",
        Column("day", sa.Date(), nullable=False),
        Column("key_id", sa.String(64), nullable=False),
        Column("model", sa.String(200), nullable=False),
        Column("adapter", sa.String(200), nullable=False),
        Column("key_name", sa.String(200), nullable=False),
        Column("requests", sa.BigInteger(), nullable=False),
        Column("failed", sa.BigInteger(), nullable=False),
        Column("cached", sa.BigInteger(), nullable=False),
        Column("prompt_tokens", sa.BigInteger(), nullable=False),
        Column("completion_tokens", sa.BigInteger(), nullable=False),
        Column("last_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("day", "key_id", "model", "adapter", name="pk_usage_daily"),
    )
    op.create_index("ix_usage_daily_key_id_day", "usage_daily", ["key_id", "day"])
