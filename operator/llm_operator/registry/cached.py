"""The registry asked no more often than it must be."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress

from llm_operator.registry.faults import RegistryFault, RegistryUnreachable
from llm_operator.registry.nouns import ModelSummary, Reference, Registry
from llm_operator.state import Connection, ModelVersion


class CachedRegistry:
    """Asks once per reference and interval, and leaves a server that does not answer alone for a while.

    Without it a dead server would hold every worker for a time-out per LLMDeployment.
    """

    def __init__(
        self, inner: Registry, keep_seconds: float, rest_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner, self._keep, self._rest, self._clock = inner, keep_seconds, rest_seconds, clock
        self._versions: dict[tuple[Connection, Reference], tuple[float, ModelVersion]] = {}
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
        version = await self._inner.resolve(connection, reference)
        self._down.pop(connection, None)
        self._versions[connection, reference] = (self._clock() + self._keep, version)
        return version

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        with self._noticing(connection):
            found = await self._inner.summary(connection)
        self._down.pop(connection, None)
        return found

    async def tags(self, connection: Connection, name: str, version: str) -> dict[str, str]:
        self._raise_if_down(connection)
        async with self._doubting(connection):
            return await self._inner.tags(connection, name, version)

    async def tag(self, connection: Connection, name: str, version: str, tags: Mapping[str, str]) -> None:
        self._raise_if_down(connection)
        async with self._doubting(connection):
            await self._inner.tag(connection, name, version, tags)

    @contextmanager
    def _noticing(self, connection: Connection) -> Iterator[None]:
        """Leave a silent server alone: only silence costs time. A refusal is quick, and may be about one model only."""
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
        """Silence about one model is the server's only if it says nothing of any model."""
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
        for known in [k for k in self._versions if k[0] == connection and k[1].name == name]:
            del self._versions[known]


def _silent(fault: RegistryFault) -> bool:
    return isinstance(fault, RegistryUnreachable) and not fault.answered
