"""Which adapters are in memory, which sequences use them, and which one makes room. Pure
bookkeeping: no torch, no clock, no threads.

A name stands for a version of an adapter. A sequence keeps the version that it began with, because
its keys and values were computed with it: a replaced or dropped version leaves memory with its last
user.
"""

from dataclasses import dataclass

from llm_runtime.errors import NotFound, ServiceUnavailable


@dataclass(slots=True)
class _Version:
    name: str
    used: int
    """When it was last acquired or loaded, in calls."""
    users: int = 0


@dataclass(frozen=True, slots=True)
class Loading:
    """What to do for a new version: forget the versions `leaving`,
    then put the new weights under `key`."""

    key: str
    leaving: tuple[str, ...]


class AdapterTable:
    """At most `limit` versions in memory. Their keys are `<name>@<number>`;
    "" is the base, which is always there."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._versions: dict[str, _Version] = {}
        self._current: dict[str, str] = {}
        self._calls = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that requests may name, oldest first."""
        return tuple(self._current)

    def acquire(self, name: str) -> str:
        """The key under which a new sequence runs, until `release`. Raises NotFound."""
        if not name:
            return ""
        key = self.key(name)
        self._touch(key)
        self._versions[key].users += 1
        return key

    def release(self, key: str) -> tuple[str, ...]:
        """A sequence has ended. Returns what may leave memory now."""
        if not key:
            return ()
        self._versions[key].users -= 1
        return self._forget_if_left(key)

    def load(self, name: str) -> Loading:
        """Make room for a new version of `name`, which new sequences get from now on.

        Raises ServiceUnavailable, with nothing changed, when every version in memory is in use.
        """
        leaving = self._leaving_for(name)
        for key in leaving:
            self._forget(key)
        self._calls += 1
        key = f"{name}@{self._calls}"
        self._current.pop(name, None)
        self._current[name] = key
        self._versions[key] = _Version(name, self._calls)
        return Loading(key, leaving)

    def drop(self, name: str) -> tuple[str, ...]:
        """No new sequence gets `name`. Returns what may leave memory now. Raises NotFound."""
        key = self.key(name)
        del self._current[name]
        return self._forget_if_left(key)

    def key(self, name: str) -> str:
        """Key of the version that new sequences get. Raises NotFound."""
        if name not in self._current:
            loaded = ", ".join(sorted(self._current)) or "none"
            raise NotFound(
                f"no adapter {name!r} is loaded; loaded are: {loaded}",
                param="model",
                code="model_not_found",
            )
        return self._current[name]

    def _leaving_for(self, name: str) -> tuple[str, ...]:
        """The replaced version if nobody uses it,
        then who was not used for longest, until one more fits."""
        replaced = self._current.get(name)
        unused = [key for key in self._current.values() if not self._versions[key].users]
        unused.sort(key=lambda key: (key != replaced, self._versions[key].used))
        surplus = max(len(self._versions) + 1 - self._limit, int(replaced in unused))
        if surplus > len(unused):
            raise ServiceUnavailable(
                f"{len(self._versions)} adapters are in memory and in use, which is as many as may"
                f" be (maxAdapters); load {name!r} again when requests have ended"
            )
        return tuple(unused[:surplus])

    def _forget_if_left(self, key: str) -> tuple[str, ...]:
        version = self._versions[key]
        if version.users or self._current.get(version.name) == key:
            return ()
        self._forget(key)
        return (key,)

    def _forget(self, key: str) -> None:
        version = self._versions.pop(key)
        if self._current.get(version.name) == key:
            del self._current[version.name]

    def _touch(self, key: str) -> None:
        self._calls += 1
        self._versions[key].used = self._calls
