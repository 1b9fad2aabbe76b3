"""Outcomes that the fetching container writes for the server:
one small file for each adapter, in a shared folder.

The server has the list without credentials, and the other container (`llm_runtime.fetcher`) the
credentials without a port. A file is replaced in one step, and says which version of which server
it is about.
"""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from llm_runtime.contract import FatalReport, PinnedAdapter, RegistryAccess
from llm_runtime.errors import Reported

LOOK_SECONDS = 0.25


class FetchOutcome(BaseModel):
    """The result of fetching an adapter's version: its folder, or a report of what went wrong."""

    model_config = ConfigDict(frozen=True)

    identity: str
    folder: str = ""
    """Name of the folder in the models folder."""
    report: FatalReport | None = None


def identity(adapter: PinnedAdapter, access: RegistryAccess) -> str:
    """One version of one server, the same in every process."""
    again = filter(None, [adapter.anew])
    parts = (
        access.tracking_uri,
        access.workspace,
        adapter.model,
        adapter.version,
        adapter.sub_path,
        *again,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def read(folder: Path, name: str) -> FetchOutcome | None:
    """The last outcome of the adapter `name`; None where there is none."""
    try:
        return FetchOutcome.model_validate_json((folder / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return None


def write(folder: Path, name: str, outcome: FetchOutcome) -> None:
    """Tell it. Raises OSError."""
    fresh = folder / f".{name}"  # No adapter's name begins so.
    fresh.write_text(outcome.model_dump_json())
    fresh.replace(folder / f"{name}.json")


class Delivered:
    """The server's end: a `Fetch` that waits for what the other container brings.
    `whole`: whether a folder is."""

    def __init__(self, outcomes: Path, models: Path, whole: Callable[[Path], bool]) -> None:
        self._outcomes = outcomes
        self._models = models
        self._whole = whole
        self._seen = 0

    async def __call__(self, adapter: PinnedAdapter, access: RegistryAccess) -> Path:
        """The verified folder. Raises errors.Reported."""
        wanted = identity(adapter, access)
        while True:
            outcome = read(self._outcomes, adapter.name)
            if outcome and outcome.identity == wanted:
                if outcome.report:
                    raise Reported(outcome.report)
                folder = self._models / outcome.folder
                if await asyncio.to_thread(self._whole, folder):
                    return folder
            await asyncio.sleep(LOOK_SECONDS)

    def news(self) -> bool:
        """Whether something was told since this was asked before."""
        try:
            before = self._seen
            self._seen = self._outcomes.stat().st_mtime_ns
        except OSError:
            return False
        return self._seen != before
