"""A registry that remembers answers, so that MLflow is asked no more often than needed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from llm_operator.ports.registry.faults import (
    ModelDenied,
    ModelNotFound,
    NothingThere,
    RegistryFault,
    RegistryUnreachable,
    listed,
)
from llm_operator.ports.registry.nouns import ModelSummary, Reference, RegistryClient
from llm_operator.state import Connection, ModelVersion


class CachedRegistry:
    """Asks once per reference and interval,
    and leaves a server that does not answer alone for a while.

    Without it a dead server would hold every worker for a time-out per LLMDeployment.
    """

    def __init__(
        self,
        inner: RegistryClient,
        keep_seconds: float,
        rest_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._keep = keep_seconds
        self._rest = rest_seconds
        self._clock = clock
        self._versions: dict[tuple[Connection, Reference], tuple[float, ModelVersion]] = {}
        self._choices: dict[tuple[Connection, Reference], tuple[float, str]] = {}
        self._down: dict[Connection, tuple[float, RegistryFault]] = {}
        self._asking: dict[Connection, asyncio.Lock] = {}

    async def resolve(self, connection: Connection, reference: Reference) -> ModelVersion:
        until, version = self._versions.get((connection, reference), (0.0, None))
        if version is not None and self._clock() < until:
            return version
        # Only a server that is in doubt is asked one question at a time.
        if connection in self._down:
            async with self._asking.setdefault(connection, asyncio.Lock()):
                self._raise_if_down(connection)
                with self._noticing(connection):
                    return await self._ask(connection, reference)
        async with self._doubting(connection):
            return await self._ask(connection, reference)

    def _raise_if_down(self, connection: Connection) -> None:
        until, fault = self._down.get(connection, (0.0, None))
        if fault is not None and self._clock() < until:
            raise fault

    async def _ask(self, connection: Connection, reference: Reference) -> ModelVersion:
        try:
            version = await self._inner.resolve(connection, reference)
        except (NothingThere, ModelDenied) as fault:
            # A server with users denies a model that does not exist.
            model = isinstance(fault, ModelNotFound | ModelDenied)
            found = await self._what_there_is(connection, reference, model=model)
            raise type(fault)(f"{fault}{found and f'; {found}'}") from fault
        self._down.pop(connection, None)
        self._versions[connection, reference] = (self._clock() + self._keep, version)
        return version

    async def _what_there_is(
        self, connection: Connection, reference: Reference, *, model: bool
    ) -> str:
        """For a reference that stands for nothing; empty where the registry does not say."""
        now = self._clock()
        known = (connection, reference)
        self._choices = {each: found for each, found in self._choices.items() if now < found[0]}
        if known not in self._choices:
            aliases = ""
            with suppress(RegistryFault):
                aliases = listed(
                    await self._inner.choices(connection, reference, model=model),
                    reference,
                    model=model,
                )
            self._choices[known] = (now + self._keep, aliases)
        return self._choices[known][1]

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        with self._noticing(connection):
            found = await self._inner.summary(connection)
        self._down.pop(connection, None)
        return found

    async def tags(self, connection: Connection, name: str, version: str) -> dict[str, str]:
        self._raise_if_down(connection)
        async with self._doubting(connection):
            return await self._inner.tags(connection, name, version)

    async def tag(
        self, connection: Connection, name: str, version: str, key: str, value: str
    ) -> None:
        self._raise_if_down(connection)
        async with self._doubting(connection):
            await self._inner.tag(connection, name, version, key, value)

    async def untag(self, connection: Connection, name: str, version: str, key: str) -> None:
        self._raise_if_down(connection)
        async with self._doubting(connection):
            await self._inner.untag(connection, name, version, key)

    async def tagged(
        self, connection: Connection, key: str
    ) -> dict[tuple[str, str], dict[str, str]]:
        self._raise_if_down(connection)
        with self._noticing(connection):
            return await self._inner.tagged(connection, key)

    @contextmanager
    def _noticing(self, connection: Connection) -> Iterator[None]:
        """Leave a silent server alone: only silence costs time.
        A refusal is quick, and may be about one model only."""
        try:
            yield
        except RegistryFault as fault:
            if _silent(fault):
                self._down[connection] = (self._clock() + self._rest, fault)
            else:
                self._down.pop(connection, None)
            raise

    @asynccontextmanager
    async def _doubting(self, connection: Connection) -> AsyncIterator[None]:
        """Whether the whole server is silent. Silence about one model counts only if the server
        says nothing of any other."""
        try:
            yield
        except RegistryFault as fault:
            if _silent(fault):
                async with self._asking.setdefault(connection, asyncio.Lock()):
                    if connection not in self._down:
                        with suppress(RegistryFault):
                            await self.summary(connection)
            raise

    def forget(self, connection: Connection, name: str) -> None:
        """Ask again about this model: the poll saw it move."""
        of: tuple[dict[tuple[Connection, Reference], Any], ...] = (self._versions, self._choices)
        for kept in of:
            for known in [k for k in kept if k[0] == connection and k[1].name == name]:
                del kept[known]


def _silent(fault: RegistryFault) -> bool:
    return isinstance(fault, RegistryUnreachable) and not fault.answered
