"""How the pods answer HTTP, what they keep, and where."""

import re

# The parser of the standard library's `re`; `sre_parse`, its public name, is deprecated without a successor.
import re._parser as parser  # type: ignore[import-not-found]
from typing import Annotated, Literal

import re2
from pydantic import Field, field_validator

from llm_operator.crds.common import BodySize, Line, ObjectName
from llm_operator.crds.schema import Section

Ttl = Annotated[int, Field(ge=1, le=31_536_000)]


class FilterPatternSpec(Section):
    """A pattern of your own for the filters."""

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9_-]+$")]
    """What a match is called in its place: `[NAME]`."""
    regex: Annotated[str, Field(min_length=1, max_length=1000)]
    """What to find, in Python's syntax without look-around and back-references."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        # CEL can't compile; here a slip is told in a condition, and no pod is started to find it. Read by Python's
        # parser and compiled by RE2, as in the pods: `re` may compile for seconds, in which all other objects wait.
        options = re2.Options()
        options.log_errors = False
        try:
            parser.parse(value)
            found = re2.compile(value, options)
        except (re.error, re2.error, OverflowError, RecursionError) as error:
            said = str(error.args[0], errors="replace") if isinstance(error.args[0], bytes) else str(error)
            hint = "look-around and back-references are not supported"
            raise ValueError(f"{value!r} is not a regular expression of Python ({hint}): {said}") from None
        if found.search(""):
            raise ValueError(f"{value!r} matches the empty text, and so everywhere")
        return value


class FiltersSpec(Section):
    """What must not pass in prompts, and not in answers: e-mail addresses, phone, card and account numbers, …"""

    # Not "Off": YAML reads it as false, which is no string.
    pii: Literal["Disabled", "Mask", "Reject"] = "Disabled"
    """Personal data in prompts. Mask: the model sees `[EMAIL]` instead; Reject: the request gets 400."""
    output: Literal["Disabled", "Mask"] = "Disabled"
    """Personal data and control characters in answers."""
    patterns: (
        Annotated[
            tuple[FilterPatternSpec, ...],
            Field(
                max_length=32,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    """What else counts as such data."""


class CompletionCacheSpec(Section):
    """Answers to requests that can have only one: greedy or seeded ones. Each key has its own."""

    enabled: bool = True
    """Whether to keep any."""
    entries: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    """How many each pod keeps in memory; the one not asked for longest goes."""
    ttl_seconds: Ttl = 3600
    """For how long."""
    database: bool = False
    """Keep them in the database, too, for other pods and later ones. Their texts are stored there."""


class SessionsSpec(Section):
    """Conversations that `/v1/chat` continues by `session_id`."""

    enabled: bool = True
    """Whether a `session_id` is taken."""
    ttl_seconds: Ttl = 7200
    """How long after its last message a conversation is kept."""


class ServerSpec(Section):
    """How to answer HTTP."""

    max_request_bytes: BodySize = "1Mi"
    """Largest request body, as a quantity."""
    max_prompt_characters: Annotated[int, Field(ge=1, le=10_000_000)] = 32_000
    """Longest prompt."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Longest time that one request may take."""
    body_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    """Longest time that a client may take to send its body; then it gets 408."""
    keep_alive_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    """How long an idle connection is kept: longer than what stands in front keeps its own, which else answers 502."""
    slot_timeout_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """Longest time that a request waits for one of its key's concurrent places; then it gets 429."""
    filters: FiltersSpec = FiltersSpec()
    """What must not pass in prompts and answers."""
    completion_cache: CompletionCacheSpec = CompletionCacheSpec()
    """Answers to repeated deterministic requests."""
    sessions: SessionsSpec = SessionsSpec()
    """Conversations of `/v1/chat`."""
    trusted_proxies: Annotated[tuple[Line, ...], Field(max_length=32)] | None = None
    """Addresses or networks of proxies whose `X-Forwarded-For` is believed; `*`: all. Absent: those inside the pod."""
    cors_origins: Annotated[tuple[Line, ...], Field(max_length=32)] | None = None
    """Origins whose browsers may call the endpoint."""
    trusted_hosts: Annotated[tuple[Line, ...], Field(max_length=32)] | None = None
    """Host headers that are answered; absent: all."""
    log_format: Literal["json", "console"] = "json"
    """How the pods log."""


class SecretKey(Section):
    """One key of a Secret of this namespace."""

    name: ObjectName
    """The Secret's name."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """The key in its data."""


class DatabaseSpec(Section):
    """Where usage, budgets and conversations are kept, for all pods and beyond them."""

    secret_ref: SecretKey | None = None
    """The address: `postgresql://user:password@host/database`. Absent: SQLite in each pod, lost with it."""
    redis_secret_ref: SecretKey | None = None
    """Address of a Redis or Valkey, `redis://host:6379/0`, which then keeps what pods share of a minute's limits."""
    retention_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    """Rows of single requests are deleted after so many days, and daily sums of callers without a key; other sums stay.
    0: never."""
    store_prompts: bool = False
    """Store prompts and answers beside the usage."""
