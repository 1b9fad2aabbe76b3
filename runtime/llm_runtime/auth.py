"""Who asks: API keys, looked up in a mounted file that may change at any moment.

A key's id finds its record, its digest proves it. The file is looked at while requests come in, so a revoked key stops
working a quarter of a second after the file says so.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from llm_runtime import errors
from llm_runtime.contract import STANDARD_TIER, KeyFile, KeyRecord, Tier, hash_key, key_id_of
from llm_runtime.request import Caller

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.25


class Keys(Protocol):
    """Whatever knows which keys are good."""

    def find(self, key: str) -> KeyRecord | None:
        """The record of a genuine key, be it still valid or not; None for any other text."""
        ...

    def refresh(self) -> None:
        """Look whether the keys have changed; cheap enough for every request."""
        ...


class KeyRing:
    """The keys of a mounted key file. A file that is broken or gone leaves the last good keys in force."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._file = KeyFile(salt="")
        self._tiers: Tiers | None = None
        self._records = dict[str, KeyRecord]()
        self._signature: tuple[int, ...] | None = None
        self._checked_at = -CHECK_SECONDS
        self._missing = False
        self.refresh()

    def find(self, key: str) -> KeyRecord | None:
        self.refresh()
        record = self._records.get(key_id_of(key) or "")
        # The digest is computed in any case, so that an answer's time does not tell which ids exist.
        digest = hash_key(key, self._file.salt)
        return record if record and hmac.compare_digest(digest, record.digest) else None

    def refresh(self) -> None:
        now = self._clock()
        if now - self._checked_at < CHECK_SECONDS:
            return
        self._checked_at = now
        signature = self._look()
        if signature is not None and signature != self._signature:
            # Kept even when the file turns out to be broken: one line in the log for each version of it.
            self._signature = signature
            self._read()

    def keep_current(self, tiers: "Tiers") -> None:
        """From now on `tiers` are the file's, where the file brings any: now and with each change of it."""
        self._tiers = tiers
        self._tell_tiers()

    def _tell_tiers(self) -> None:
        if self._tiers and self._file.default_tier:
            self._tiers.replace(self._file.tiers, self._file.default_tier)

    def _look(self) -> tuple[int, ...] | None:
        """What changes when the kubelet swaps its `..data` link or somebody writes in place; None without a file."""
        try:
            found = self._path.stat()
        except OSError as error:
            if not self._missing:
                log.error("The key file %s can't be read; the last good keys stay in force: %s", self._path, error)
            self._missing = True
            return None
        self._missing = False
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> None:
        try:
            file = KeyFile.model_validate_json(self._path.read_bytes())
        except (OSError, ValueError) as error:
            # A Pydantic message would quote the file, digests and all.
            log.error("The key file %s is not valid (%s); the last good keys stay in force", self._path, type(error))
            return
        self._file, self._records = file, {record.id: record for record in file.keys}
        self._tell_tiers()
        log.info("Read %d API keys from %s", len(file.keys), self._path)


class SingleKey:
    """The one key of a stand-alone server (`API_KEY`), of any form."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()
        self._record = KeyRecord(id="api-key", digest="", name="API_KEY")

    def find(self, key: str) -> KeyRecord | None:
        digest = hashlib.sha256(key.encode()).digest()
        return self._record if hmac.compare_digest(digest, self._digest) else None

    def refresh(self) -> None:
        """Nothing to look at: the key came with the environment."""


class Tiers:
    """Which limits a key has: its own over those of its tier, and those of the default tier where it names none."""

    def __init__(self, configured: Sequence[Tier] = (), default: str = STANDARD_TIER.name) -> None:
        self.replace(configured, default)

    def replace(self, configured: Sequence[Tier], default: str) -> None:
        """Other tiers from now on. Where there is no tier named `default`, the standard one is."""
        self._tiers = {STANDARD_TIER.name: STANDARD_TIER, **{tier.name: tier for tier in configured}}
        self._default = default if default in self._tiers else STANDARD_TIER.name
        self._callers: dict[str, tuple[KeyRecord, Caller]] = {}

    def find(self, name: str) -> Tier:
        """A tier by its name. A name that is not known gets the default tier: a slip must open nothing."""
        return self._tiers.get(name) or self._tiers[self._default]

    def caller(self, record: KeyRecord) -> Caller:
        """The holder of a key. One object for each key and state of it: it is asked for with every request."""
        known = self._callers.get(record.id)
        if known and known[0] is record:
            return known[1]
        tier = self.find(record.tier).model_copy(update=record.limits.model_dump(exclude_none=True))
        caller = Caller(record.id, record.name, tier, record.owner, record.adapters)
        self._callers[record.id] = record, caller
        return caller

    def address(self, host: str) -> Caller:
        """A client without a key, known by its address only."""
        return Caller(f"ip:{host}", "anonymous", self.find(self._default))


def authenticate(keys: Keys, offered: Iterable[str], now: datetime) -> KeyRecord:
    """The record behind the first known key of those a request carries.

    Raises `errors.Unauthorized` for none and `errors.Forbidden` for a suspended or expired one.
    """
    candidates = [key for key in offered if key]
    if not candidates:
        message = "This server wants an API key: send `Authorization: Bearer <key>` or `X-API-Key: <key>`."
        raise errors.Unauthorized(message, code="invalid_api_key")
    for key in candidates:
        if record := keys.find(key):
            return _valid(record, now)
    raise errors.Unauthorized("The API key is not known to this server.", code="invalid_api_key")


def _valid(record: KeyRecord, now: datetime) -> KeyRecord:
    if record.suspended:
        raise errors.Forbidden(f"The API key {record.id} is suspended; ask its issuer.", code="key_suspended")
    if (end := _aware(record.expires_at)) and end <= now:
        message = f"The API key {record.id} expired at {end.isoformat()}; ask its issuer for a new one."
        raise errors.Forbidden(message, code="key_expired")
    return record


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
