"""Fetches adapters for the server beside it,
and alone has the credentials: `python -m llm_runtime.fetcher`.

It follows the list of adapters and the registries' credentials. A child process does the fetching.
This process lives as long as the pod and stays small; a download that is no longer wanted ends with
its process. It gives up on nothing by itself: a pod one of whose containers has ended gets no
requests.
"""

import argparse
import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from llm_runtime import errors, logs
from llm_runtime.adapters import AdapterList
from llm_runtime.adapters.delivery import LOOK_SECONDS, FetchOutcome, identity, read, write
from llm_runtime.adapters.keeper import pause_seconds
from llm_runtime.common.mounted import MountedFile
from llm_runtime.common.python import PYTHON
from llm_runtime.contract import (
    ADAPTERS_FLAG,
    FETCHED_FLAG,
    MODELS_FLAG,
    REGISTRIES_FLAG,
    CandidateAdapter,
    FatalReport,
    PinnedAdapter,
    RegistriesFile,
    RegistryAccess,
)
from llm_runtime.fetching.fetch_adapter import fetch_adapter
from llm_runtime.files.verify import MANIFEST

log = logging.getLogger(__name__)
CHILD = (*PYTHON, "-m", "llm_runtime.fetcher")

HIDDEN_CHARACTERS = 8
"""Shorter passwords are not hidden, because they occur as words in any line."""


class FetchTask(BaseModel):
    """One version to fetch, and the account to fetch it with."""

    model_config = ConfigDict(frozen=True)

    adapter: PinnedAdapter | CandidateAdapter
    access: RegistryAccess

    @property
    def identity(self) -> str:
        return identity(self.adapter, self.access)


_TASKS = TypeAdapter(list[FetchTask])


class Child(Protocol):
    """A process that fetches; a test's stand-in has these methods too."""

    def poll(self) -> int | None:
        """Exit code of the process, None while it runs."""
        ...

    def kill(self) -> None: ...


@dataclass
class _Retry:
    job: FetchTask
    failures: int
    at: float


class AdaptersFetcher:
    """Keeps the outcomes beside the wanted adapters up to date. `chance`: 0 to 1."""

    def __init__(
        self,
        adapters: Path,
        registries: Path,
        models: Path,
        outcomes: Path,
        start: Callable[[list[FetchTask]], Child],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._list = AdapterList(adapters)
        self._registries = MountedFile(registries)
        self._models = models
        self._outcomes = outcomes
        self._start = start
        self._clock = clock
        self._chance = chance
        self._access: Mapping[str, RegistryAccess] = {}
        self._retries: dict[str, _Retry] = {}
        self._child: Child | None = None
        self._jobs: list[FetchTask] = []
        """The child's."""

    def look(self) -> None:
        """Start and end child processes as needed. Returns at once."""
        if self._list.refresh() | self._take_registries():
            self._retries.clear()  # It may be the credentials that were wrong.
        wanted = {
            each.name: FetchTask(adapter=each, access=self._access[each.connection])
            for each in self._list.wanted.with_candidates
            if each.connection
            in self._access  # Otherwise the server reports it, because its list lacks the adapter too.
        }
        listed = {each.name for each in self._list.wanted.with_candidates}
        for file in self._outcomes.glob("*.json"):
            if file.stem not in listed:
                file.unlink()
        if self._child is not None and not self._over(self._child, wanted):
            return
        due = [job for job in wanted.values() if not self._brought(job) and self._may(job)]
        if due:
            try:
                self._jobs = due
                self._child = self._start(due)
            except OSError as error:
                for job in due:
                    self._settle(job, f"could not be started: {error}")

    def stop(self) -> None:
        """End what runs."""
        if self._child is not None:
            self._child.kill()

    def _over(self, child: Child, wanted: Mapping[str, FetchTask]) -> bool:
        code = child.poll()
        if code is None:
            if all(
                wanted.get(job.adapter.name) == job for job in self._jobs if not self._brought(job)
            ):
                return False
            child.kill()
        else:
            ended = f"ended with signal {-code}" if code < 0 else f"ended with exit code {code}"
            for job in self._jobs:
                self._settle(job, f"{ended}; its log may say why" if code else "")
        self._child = None
        return True

    def _settle(self, job: FetchTask, trouble: str) -> None:
        """An attempt is over; `trouble`: why it told nothing itself."""
        name = job.adapter.name
        if self._brought(job):
            self._retries.pop(name, None)
            return
        if trouble:
            message = f"fetching {job.adapter.model} version {job.adapter.version} {trouble}"
            _tell(
                self._outcomes,
                name,
                FetchOutcome(identity=job.identity, report=_report("InternalError", message)),
            )
        before = self._retries.get(name)
        failures = before.failures + 1 if before and before.job == job else 1
        self._retries[name] = _Retry(
            job, failures, self._clock() + pause_seconds(failures, self._chance())
        )

    def _may(self, job: FetchTask) -> bool:
        retry = self._retries.get(job.adapter.name)
        return retry is None or retry.job != job or self._clock() >= retry.at

    def _brought(self, job: FetchTask) -> bool:
        """Whether the outcome is written and the version still there:
        another user of the volume may have made room."""
        outcome = read(self._outcomes, job.adapter.name)
        if outcome is None or outcome.identity != job.identity or not outcome.folder:
            return False
        return (self._models / outcome.folder / MANIFEST).is_file()

    def _take_registries(self) -> bool:
        content = self._registries.news()
        if content is None:
            return False
        try:
            self._access = RegistriesFile.model_validate_json(content).connections
        except ValidationError as error:
            # Without the input: it holds credentials.
            log.error(
                "The registries in %s are not valid (%s); the last good ones stay in force",
                self._registries.path,
                "; ".join(str(each["msg"]) for each in error.errors(include_input=False)),
            )
            return False
        return True


def fetch_all(jobs: list[FetchTask], models: Path, outcomes: Path) -> None:
    """The child's work: bring each, and tell what became of it."""
    private = (secret for job in jobs for secret in (job.access.password, job.access.token))
    logs.hide({secret: "CREDENTIALS" for secret in private if len(secret) >= HIDDEN_CHARACTERS})
    for job in jobs:
        try:
            folder = fetch_adapter(job.adapter, job.access, models)
            outcome = FetchOutcome(identity=job.identity, folder=folder.name)
        except errors.Fatal as fatal:
            outcome = FetchOutcome(identity=job.identity, report=_report(fatal.reason, str(fatal)))
        except Exception as error:
            log.exception("Fetching the adapter %s failed", job.adapter.name)
            reason = (
                f"{type(error).__name__}: {error}; see the log of the container that fetches"
                " adapters"
            )
            outcome = FetchOutcome(identity=job.identity, report=_report("InternalError", reason))
        if outcome.report:
            log.error(
                "adapter not fetched: %s",
                outcome.report.message,
                extra={"adapter": job.adapter.name},
            )
        _tell(outcomes, job.adapter.name, outcome)


def _tell(folder: Path, name: str, outcome: FetchOutcome) -> None:
    """An outcome that can't be written, as on a full disk, is a failed attempt,
    and holds up no other adapter."""
    try:
        write(folder, name, outcome)
    except OSError as error:
        log.error("the server could not be told of the adapter %s: %s", name, error)


def _report(reason: str, message: str) -> FatalReport:
    # The server reads it, and shows it.
    return FatalReport(reason=reason, message=logs.shown(message))


def _run(adapters: Path, registries: Path, models: Path, outcomes: Path) -> None:
    """Until SIGTERM."""
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())

    def start(jobs: list[FetchTask]) -> Child:
        given = [MODELS_FLAG, str(models), FETCHED_FLAG, str(outcomes)]
        child = subprocess.Popen([*CHILD, *given], stdin=subprocess.PIPE)
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin:  # Its exit code says so.
            child.stdin.write(_TASKS.dump_json(jobs, by_alias=True))
        return child

    fetcher = AdaptersFetcher(adapters, registries, models, outcomes, start)
    while not over.wait(LOOK_SECONDS):
        try:
            fetcher.look()
        except Exception:
            log.exception("looking at the adapters failed")
    fetcher.stop()


def main() -> None:
    """Entry point. Without a list it is the child: what to bring comes by standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_runtime.fetcher", description="Fetch adapters for a server."
    )
    parser.add_argument(ADAPTERS_FLAG, type=Path, help="the list to follow")
    parser.add_argument(
        REGISTRIES_FLAG, type=Path, help="the registries and their credentials, followed, too"
    )
    parser.add_argument(
        MODELS_FLAG, type=Path, required=True, help="folder that holds fetched models"
    )
    parser.add_argument(
        FETCHED_FLAG, type=Path, required=True, help="folder in which the server is told"
    )
    given = parser.parse_args()
    logs.configure("json", "INFO")
    if given.adapters:
        _run(given.adapters, given.registries, given.models, given.fetched)
    else:
        fetch_all(_TASKS.validate_json(sys.stdin.buffer.read()), given.models, given.fetched)


if __name__ == "__main__":
    main()
