"""Identifies callers by their keys, with the limits of their holders, and reads the key file again
as it changes.

A key's id finds its record, its digest proves it. Keys come from a mounted file (`KeyRing`), from
the environment (`SingleKey`) or from the database (`keys.DatabaseKeys`); `KeyChain` asks several of
these.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llm_runtime import errors
from llm_runtime.common.mounted import MountedFile
from llm_runtime.contract import (
    STANDARD_TIER,
    KeyFile,
    KeyRecord,
    Tier,
    hash_key,
    is_candidate,
    key_id_of,
)
from llm_runtime.request import Caller

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.05
"""Shortest time between two looks at the key file while requests come. A look is a stat, which
takes two microseconds."""
KEY_POLL_SECONDS = 1.0
"""Time between two looks at the key file while no request comes."""
MAX_CALLERS = 10_000
"""Callers kept ready. Beyond that all are made anew, which takes microseconds each."""
NO_DIGEST = "0" * 64
IPV6_TENANT_BITS = 64
"""One customer's network: with a whole /64 each, addresses would be no limit."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Tiers that come with the keys and lie over the configured ones."""

    tiers: Mapping[str, Tier] = field(default_factory=dict)
    default: str = ""
    """The tier of keys that name none; "" leaves it to the configuration."""


NO_ROLES = Roles()


class Keys(Protocol):
    """Whatever knows which keys are good."""

    @property
    def roles(self) -> Roles:
        """The tiers, as another object as soon as one of them has changed."""
        ...

    def find(self, key: str) -> KeyRecord | None:
        """The record of a genuine key, be it still valid or not; None for any other text.

        Raises `errors.ServiceUnavailable` while the keys are not known yet.
        """
        ...

    def records(self) -> Collection[KeyRecord]:
        """All of them."""
        ...

    def refresh(self) -> None:
        """Look whether the keys have changed; cheap enough for every request."""
        ...


class KeyRing:
    """The keys of a mounted key file.
    A file that is broken or gone leaves the last good keys in force.

    The file is looked at while requests come in,
    so a revoked key stops working 50 ms after it says so.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = MountedFile(path)
        self._clock = clock
        self.roles = NO_ROLES
        self._salt = ""
        self._records = dict[str, KeyRecord]()
        self._checked_at = -CHECK_SECONDS
        self.refresh()

    def find(self, key: str) -> KeyRecord | None:
        self.refresh()
        return proven(key, self._salt, self._records)

    def records(self) -> Collection[KeyRecord]:
        return self._records.values()

    def refresh(self) -> None:
        now = self._clock()
        if now - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = now
        if (content := self._file.news()) is not None:
            self._take(content)

    def _take(self, content: bytes) -> None:
        path = self._file.path
        try:
            file = KeyFile.model_validate_json(content)
        except ValueError as error:
            # A Pydantic message would quote the file, digests and all.
            log.error(
                "The key file %s is not valid (%s); the last good keys stay in force",
                path,
                type(error),
            )
            return
        self._salt = file.salt
        self._records = {record.id: record for record in file.keys}
        self.roles = Roles({tier.name: tier for tier in file.tiers}, file.default_tier)
        log.info("Read %d API keys from %s", len(file.keys), path)


class SingleKey:
    """A key of the environment, of any form: `API_KEY`, or `ADMIN_API_KEY` for an administrator."""

    roles = NO_ROLES

    def __init__(self, key: str, *, admin: bool = False) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()
        name = "ADMIN_API_KEY" if admin else "API_KEY"
        self._record = KeyRecord(
            id=name.lower().replace("_", "-"), digest="", name=name, admin=admin
        )

    def find(self, key: str) -> KeyRecord | None:
        digest = hashlib.sha256(key.encode()).digest()
        return self._record if hmac.compare_digest(digest, self._digest) else None

    def records(self) -> Collection[KeyRecord]:
        return (self._record,)

    def refresh(self) -> None:
        """Nothing to look at: the key came with the environment."""


class KeyChain:
    """Several sources, asked in turn: those that are always there first."""

    def __init__(self, *sources: Keys) -> None:
        self._sources = sources

    @property
    def roles(self) -> Roles:
        return next(
            (source.roles for source in self._sources if source.roles is not NO_ROLES), NO_ROLES
        )

    def find(self, key: str) -> KeyRecord | None:
        return next((record for source in self._sources if (record := source.find(key))), None)

    def records(self) -> Collection[KeyRecord]:
        return [record for source in self._sources for record in source.records()]

    def refresh(self) -> None:
        for source in self._sources:
            source.refresh()


class Tiers:
    """The limits of a key: its own over those of its tier,
    and those of the default tier where it names none."""

    def __init__(
        self,
        configured: Sequence[Tier] = (),
        default: str = STANDARD_TIER.name,
        roles: Callable[[], Roles] = lambda: NO_ROLES,
    ) -> None:
        """`roles` gives what lies over the configured tiers now: see `Keys.roles`."""
        self._configured = {
            STANDARD_TIER.name: STANDARD_TIER,
            **{tier.name: tier for tier in configured},
        }
        self._default = default
        self._roles = roles
        self._above = NO_ROLES
        self._tiers = self._with(NO_ROLES)
        self._callers: dict[str, tuple[KeyRecord, Caller]] = {}

    def find(self, name: str) -> Tier:
        """A tier by its name.
        A name that is not known gets the default tier: a typo must not grant more."""
        tiers = self.known()
        return tiers.get(name) or tiers[""]

    def known(self) -> Mapping[str, Tier]:
        """All tiers by their names, as they are now; the default one also by ""."""
        if (above := self._roles()) is not self._above:
            self._above = above
            self._tiers = self._with(above)
            self._callers.clear()
        return self._tiers

    def caller(self, record: KeyRecord) -> Caller:
        """The holder of a key.
        One object for each key and state of it: it is asked for with every request."""
        self.known()
        known = self._callers.get(record.id)
        if known and known[0] is record:
            return known[1]
        if len(self._callers) >= MAX_CALLERS:
            self._callers.clear()
        tier = self.find(record.tier).model_copy(update=record.limits.model_dump(exclude_none=True))
        caller = Caller(
            record.id,
            record.name,
            tier,
            record.owner,
            record.adapters,
            record.admin,
            record.operator,
        )
        self._callers[record.id] = record, caller
        return caller

    def address(self, host: str) -> Caller:
        """A client without a key, known by its address only."""
        return Caller(f"ip:{tenant_address(host)}", "anonymous", self.find(""))

    def _with(self, above: Roles) -> Mapping[str, Tier]:
        tiers = {**self._configured, **above.tiers}
        return {**tiers, "": tiers.get(above.default or self._default, STANDARD_TIER)}


@dataclass(frozen=True, slots=True)
class Callers:
    """Who sends a request. Without `keys`,
    or where none is `required`, everybody is known by address only."""

    keys: Keys | None
    tiers: Tiers
    required: bool = True

    def identify(self, connection: "HTTPConnection") -> Caller:
        """The caller of a request.
        Raises `errors.Unauthorized` and `errors.Forbidden`: see `authenticate`."""
        if self.keys is None or not self.required:
            return self._operator(connection) or self.tiers.address(client_host(connection))
        return self.tiers.caller(authenticate(self.keys, offered(connection), datetime.now(UTC)))

    def _operator(self, connection: "HTTPConnection") -> Caller | None:
        """The operator, which says who it is where nobody has to."""
        found = (self.keys.find(key) for key in offered(connection) if key) if self.keys else ()
        record = next((record for record in found if record and record.operator), None)
        return self.tiers.caller(record) if record else None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Read the key file again while no request comes,
        so that its faults get into the log all the same."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while self.keys is not None:
            await asyncio.sleep(KEY_POLL_SECONDS)
            self.keys.refresh()


def offered(connection: "HTTPConnection") -> list[str]:
    """The keys that a request carries.
    `Authorization: Bearer` and `X-API-Key` are the same to every endpoint."""
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    return [
        bearer.strip() if scheme.lower() == "bearer" else "",
        connection.headers.get("x-api-key", ""),
    ]


def client_host(connection: "HTTPConnection") -> str:
    """The client's address; of a trusted proxy's client its own."""
    return connection.client.host if connection.client else ""


def proven(key: str, salt: str, records: Mapping[str, KeyRecord]) -> KeyRecord | None:
    """The record of a genuine key.
    Does the same work for every text, so that time does not tell which ids exist."""
    record = records.get(key_id_of(key) or "")
    same = hmac.compare_digest(hash_key(key, salt), record.digest if record else NO_DIGEST)
    return record if record and same else None


@lru_cache(maxsize=4096)
def tenant_address(host: str) -> str:
    """The part of an address that clients of one tenant share:
    an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), IPV6_TENANT_BITS), strict=False))


def authenticate(keys: Keys, offered: Iterable[str], now: datetime) -> KeyRecord:
    """The record behind the first known key of those a request carries.

    Raises `errors.Unauthorized` for none and `errors.Forbidden` for a suspended or expired one.
    """
    candidates = [key for key in offered if key]
    if not candidates:
        message = (
            "This server wants an API key: send `Authorization: Bearer <key>` or `X-API-Key:"
            " <key>`."
        )
        raise errors.Unauthorized(message, code="invalid_api_key")
    for key in candidates:
        if record := keys.find(key):
            return _valid(record, now)
    raise errors.Unauthorized("The API key is not known to this server.", code="invalid_api_key")


def may_use(caller: Caller, adapter: str) -> bool:
    """Whether `adapter` is among those that the caller may use."""
    if is_candidate(adapter):
        return caller.operator
    return not adapter or not caller.adapters or adapter in caller.adapters


def _valid(record: KeyRecord, now: datetime) -> KeyRecord:
    if record.suspended:
        raise errors.Forbidden(
            f"The API key {record.id} is suspended; ask its issuer.", code="key_suspended"
        )
    if (end := _aware(record.expires_at)) and end <= now:
        message = (
            f"The API key {record.id} expired at {end.isoformat()}; ask its issuer for a new one."
        )
        raise errors.Forbidden(message, code="key_expired")
    return record


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
