"""spec.server and spec.database: bounds of a request, filters, caches, sessions, and where usage
is stored."""

import re

# The parser of the standard library's `re`;
# `sre_parse`, its public name, is deprecated without a successor.
import re._parser as parser  # type: ignore[import-not-found]
from typing import Annotated, Literal

import re2
from pydantic import Field, field_validator

from llm_operator.crds.common import BodySize, Line, ObjectName, size
from llm_operator.crds.schema import Section, described_by
from llm_runtime.contract import (
    CompletionCacheConfig,
    DatabaseConfig,
    FilterPattern,
    FiltersConfig,
    ServerConfig,
    SessionsConfig,
)

Ttl = Annotated[int, Field(ge=1, le=31_536_000)]
Seconds = Annotated[int, Field(ge=1, le=86_400)]


@described_by(FilterPattern)
class FilterPatternSpec(Section):
    """A further pattern that the filters look for."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9_-]+$")]
    regex: Annotated[str, Field(min_length=1, max_length=1000)]

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        # CEL can't compile; here a slip is told in a condition, and no pod is started to find it.
        # Read by Python's parser and compiled by RE2, as in the pods: `re` may compile for seconds,
        # in which all other objects wait.
        options = re2.Options()
        options.log_errors = False
        try:
            parser.parse(value)
            found = re2.compile(value, options)
        except (re.error, re2.error, OverflowError, RecursionError) as error:
            reason = (
                str(error.args[0], errors="replace")
                if isinstance(error.args[0], bytes)
                else str(error)
            )
            hint = "look-around and back-references are not supported"
            raise ValueError(
                f"{value!r} is not a regular expression of Python ({hint}): {reason}"
            ) from None
        if found.search(""):
            raise ValueError(f"{value!r} matches the empty text, and so everywhere")
        return value


FILTERS = FiltersConfig()
CACHE = CompletionCacheConfig()
SESSIONS = SessionsConfig()
SERVER = ServerConfig()
DATABASE = DatabaseConfig()


@described_by(FiltersConfig)
class FiltersSpec(Section):
    """Filters for personal data in prompts and answers:
    e-mail addresses, phone, card and account numbers and more."""

    # Not "Off": YAML reads it as false, which is no string.
    pii: Literal["Disabled", "Mask", "Reject"] = FILTERS.pii
    output: Literal["Disabled", "Mask"] = FILTERS.output
    patterns: (
        Annotated[
            tuple[FilterPatternSpec, ...],
            Field(
                max_length=32,
                json_schema_extra={
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                },
            ),
        ]
        | None
    ) = None


@described_by(CompletionCacheConfig)
class CompletionCacheSpec(Section):
    """Cache of answers to deterministic requests (greedy or with a seed). Each key has its own."""

    enabled: bool = CACHE.enabled
    entries: Annotated[int, Field(ge=1, le=10_000_000)] = CACHE.entries
    ttl_seconds: Ttl = CACHE.ttl_seconds
    database: bool = CACHE.database


@described_by(SessionsConfig)
class SessionsSpec(Section):
    """Conversations that `/v1/chat` continues by `session_id`, and responses that `/v1/responses`
    continues by `previous_response_id`."""

    enabled: bool = SESSIONS.enabled
    ttl_seconds: Ttl = SESSIONS.ttl_seconds


@described_by(ServerConfig)
class ServerSpec(Section):
    """How the pods answer HTTP."""

    max_request_bytes: BodySize = size(SERVER.max_request_bytes)
    """Largest request body, as a quantity such as `1Mi`; a larger one gets 413."""
    max_prompt_characters: Annotated[int, Field(ge=1, le=10_000_000)] = SERVER.max_prompt_characters
    request_timeout_seconds: Seconds = int(SERVER.request_timeout_seconds)
    body_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = int(SERVER.body_timeout_seconds)
    keep_alive_seconds: Annotated[int, Field(ge=1, le=3600)] = SERVER.keep_alive_seconds
    slot_timeout_seconds: Annotated[int, Field(ge=0, le=3600)] = int(SERVER.slot_timeout_seconds)
    filters: FiltersSpec = FiltersSpec()
    completion_cache: CompletionCacheSpec = CompletionCacheSpec()
    sessions: SessionsSpec = SessionsSpec()
    trusted_proxies: Annotated[tuple[Line, ...], Field(max_length=32)] | None = None
    """Addresses or networks of proxies whose `X-Forwarded-For` is trusted, such as `10.0.0.0/8`;
    `*` is all. Absent: those inside the pod."""
    cors_origins: Annotated[tuple[Line, ...], Field(max_length=32)] | None = None
    trusted_hosts: Annotated[tuple[Line, ...], Field(max_length=32)] | None = None
    log_format: Literal["json", "console"] = SERVER.log_format
    """Format of the pods' logs: a JSON object per line, or text for people."""


class SecretKey(Section):
    """A key in a Secret of this namespace."""

    name: ObjectName
    """Name of the Secret to read."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key in the Secret's data."""


@described_by(DatabaseConfig)
class DatabaseSpec(Section):
    """Where usage, budgets and conversations are stored, for all pods and beyond them."""

    secret_ref: SecretKey | None = None
    """Secret with the address of the database, `postgresql://user:password@host/database`. Absent:
    SQLite in each pod, lost with it."""
    redis_secret_ref: SecretKey | None = None
    """Secret with the address of a Redis or Valkey, `redis://host:6379/0`, which then keeps what
    pods share of a minute's limits. Absent: Postgres keeps it; with SQLite each pod counts for
    itself."""
    retention_days: Annotated[int, Field(ge=0, le=36_500)] = DATABASE.retention_days
    store_prompts: bool = DATABASE.store_prompts
