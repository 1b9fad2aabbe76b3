"""The tables. A change here needs a migration.

Times are UTC, stored with their zone if the database supports zones; otherwise `Moment` adds it
when reading. Counters that several replicas increase are updated by `SET x = x + n`. Statements
that update several rows do so in the order of their keys: replicas that lock rows in the same order
can't deadlock.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Float,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.types import TypeDecorator

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


class Moment(TypeDecorator[datetime]):
    """A point in time: with a zone in Python, always UTC in the database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


roles = Table(
    "roles",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("requests_per_month", BigInteger),
    Column("tokens_per_month", BigInteger),
    Column("max_concurrent", Integer),
    Column("priority", Integer, nullable=False, default=0),
    Column("updated_at", Moment, nullable=False),
)
"""Tiers of a stand-alone server: `contract.Tier`.
They override those of the configuration. NULL means no limit."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("owner", String(256), nullable=False, default=""),
    Column("role", String(63), nullable=False, default=""),
    Column("limits", JSON, nullable=False, default=dict),
    Column("adapters", JSON, nullable=False, default=list),
    Column("admin", Boolean, nullable=False, default=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
    Column("replaced_by", String(64)),
    Index(None, "updated_at"),
    Index(None, "name"),
)
"""Keys of a stand-alone server: `contract.KeyRecord`.
Revoked keys stay, so that replicas see them by `updated_at`."""

inference_log = Table(
    "inference_log",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("key_name", String(200), nullable=False),
    Column("tier", String(63), nullable=False),
    Column("user_hash", String(16)),
    Column("endpoint", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("adapter", String(200), nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("choices", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("finish_reasons", String(200), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("first_token_seconds", Float),
    Column("duration_seconds", Float, nullable=False),
    Column("prompt", Text),
    Column("completion", Text),
    Index(None, "key_id", "at"),
    Index(None, "at"),
)
"""One row for each admitted request: `usage.UsageRow`.
`prompt` and `completion` are NULL unless configured.

The writer creates a row's `id` once.
If a commit was not acknowledged, the row is sent again and recognised by its id.
"""

usage_daily = Table(
    "usage_daily",
    metadata,
    Column("day", Date, nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("adapter", String(200), nullable=False),
    Column("key_name", String(200), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("last_at", Moment, nullable=False),
    PrimaryKeyConstraint("day", "key_id", "model", "adapter"),
    Index(None, "key_id", "day"),
)
"""Sums by UTC day, updated in the transaction that writes the rows,
so that reports need not count rows."""

budgets = Table(
    "budgets",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("used", Double, nullable=False),
    Column("at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Index(None, "expires_at"),
)
"""The state of a limit that replicas share.

`id` is `<key>/<limit>` for a limit by minute, `<key>/<limit>/<YYYY-MM>` for one by month. By month,
`used` is what has been leased and not returned, a whole number below 2^53. By minute, `used` is the
level of the leaky bucket at `at`. Times are seconds since 1970 of the database's clock. From
`expires_at` on, a row has no meaning.
"""

leases = Table(
    "leases",
    metadata,
    Column("replica", String(64), nullable=False),
    Column("budget", String(200), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
    PrimaryKeyConstraint("replica", "budget"),
    Index(None, "budget", "expires_at"),
    Index(None, "expires_at"),
)
"""What a replica has leased from a month's budget and certainly not used.
It is returned if the replica dies.

The row with budget "" is the replica's heartbeat.
"""

completion_cache = Table(
    "completion_cache",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("answer", JSON, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Index(None, "expires_at"),
)
"""Second level of the completion cache.
`id` is the SHA-256 of everything that decides an answer, and the tenant."""

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Index(None, "expires_at"),
)
"""Conversations of `/v1/chat`. `id` is the SHA-256 of tenant and session_id.
`version` is for optimistic locking."""

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("document", JSON, nullable=False),
    Column("expires_at", Moment, nullable=False),
    Index(None, "expires_at"),
)
"""Responses of `/v1/responses`: `sessions.Stored`. `id` is the SHA-256 of tenant and response id.
A row changes only while its `status` is in_progress."""

settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Values that all replicas must share:
the salt of the key digests, unless the environment sets one."""
