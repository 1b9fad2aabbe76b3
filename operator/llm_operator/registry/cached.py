"""The registry asked no more often than it must be."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
        doubtful = connection in self._down
        if doubtful:
            async with self._asking.setdefault(connection, asyncio.Lock()):
                self._raise_if_down(connection)
                return await self._ask(connection, reference)
        return await self._ask(connection, reference)

    def _raise_if_down(self, connection: Connection) -> None:
        until, fault = self._down.get(connection, (0.0, None))
        if fault is not None and self._clock() < until:
            raise fault

    async def _ask(self, connection: Connection, reference: Reference) -> ModelVersion:
        with self._reading(connection):
            version = await self._inner.resolve(connection, reference)
        self._versions[connection, reference] = (self._clock() + self._keep, version)
        return version

    async def summary(self, connection: Connection) -> dict[str, ModelSummary]:
        with self._reading(connection):
            return await self._inner.summary(connection)

    async def tags(self, connection: Connection, name: str, version: str) -> dict[str, str]:
        self._raise_if_down(connection)
        with self._noticing(connection):
            return await self._inner.tags(connection, name, version)

    async def tag(self, connection: Connection, name: str, version: str, tags: Mapping[str, str]) -> None:
        self._raise_if_down(connection)
        with self._noticing(connection):
            await self._inner.tag(connection, name, version, tags)

    @contextmanager
    def _reading(self, connection: Connection) -> Iterator[None]:
        """Leave a server alone that answers no question; ask one again that does."""
        try:
            yield
        except RegistryFault as fault:
            if fault.about_server:
                self._leave_alone(connection, fault)
            raise
        self._down.pop(connection, None)

    @contextmanager
    def _noticing(self, connection: Connection) -> Iterator[None]:
        """Leave a silent server alone. What is refused says nothing here: who may read may be forbidden to write."""
        try:
            yield
        except RegistryUnreachable as fault:
            self._leave_alone(connection, fault)
            raise

    def _leave_alone(self, connection: Connection, fault: RegistryFault) -> None:
        self._down[connection] = (self._clock() + self._rest, fault)

    def forget(self, connection: Connection, name: str) -> None:
        """Ask again about this model: the poll saw it move."""
        for known in [k for k in self._versions if k[0] == connection and k[1].name == name]:
            del self._versions[known]
