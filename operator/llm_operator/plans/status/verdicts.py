"""Verdicts for the registry: how roll-outs ended, read off the status; the tag that says so;
and what was written already."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_operator.crds import LLMDeploymentStatus
from llm_operator.state import Meta, Observed, Verdict
from llm_runtime import contract

PROMOTED = "Promoted"
FAILED = "Failed"
ROLLED_BACK = "RolledBack"
BETWEEN = " | "
"""Stands between two verdicts in a tag, the newest first."""
VERDICTS = 6
NEWEST_CHARACTERS = 1000
EARLIER_CHARACTERS = 300
"""Largest length of the newest verdict in a tag, and of each earlier one."""
_FORMER_PARTS = ("message", "revision", "time", "verdict")


@dataclass(frozen=True)
class Ended:
    """The end of a roll-out and its moment."""

    verdict: Verdict
    at: str


def ended(observed: Observed, status: LLMDeploymentStatus) -> tuple[Ended, ...]:
    """The last verdict on each version, newest first.

    The status alone tells, so that a crash between status and tag loses nothing. A version that
    failed in another configuration than the one in which it serves is not at fault.
    """
    models = _models(observed)
    found: dict[tuple[str, str], Ended] = {}

    def note(revision: str, version: str, outcome: str, message: str, at: str | None) -> None:
        model = models.get(revision)
        if model and at:
            verdict = Verdict(model, version, outcome, message, revision)
            found.setdefault((model, version), Ended(verdict, at))

    if stable := status.stable:
        note(stable.revision, stable.version, PROMOTED, stable.judged or "", stable.started_at)
    for entry in status.history:
        if entry.outcome == "RolledBack":
            note(entry.revision, entry.version, ROLLED_BACK, entry.message or "", entry.ended_at)
        elif entry.served:
            note(entry.revision, entry.version, PROMOTED, entry.judged or "", entry.started_at)
        elif entry.outcome == "Failed":
            note(entry.revision, entry.version, FAILED, entry.message or "", entry.ended_at)
    return tuple(sorted(found.values(), key=lambda each: each.at, reverse=True))


def _models(observed: Observed) -> dict[str, str]:
    """The registered model of each revision that is still there,
    of those on the server that the spec names."""
    found = {}
    for revision, children in observed.revisions.items():
        text = ((children.config or {}).get("data") or {}).get(contract.CONFIG_FILE)
        mlflow = (json.loads(text).get("model") or {}).get("mlflow") if text else None
        if (
            mlflow
            and observed.connection
            and mlflow["trackingUri"] == observed.connection.tracking_uri
        ):
            found[revision] = str(mlflow["name"])
    return found


def tag(meta: Meta) -> str:
    """The key of the deployment's tag. Each deployment has its own, because several may serve one
    version; it is short, because people read it."""
    return f"{meta.namespace}/{meta.name}"


def former_tags(meta: Meta) -> tuple[str, ...]:
    """The keys under which releases up to 0.1 told the last verdict."""
    return tuple(f"llm-operator.{meta.namespace}.{meta.name}.{part}" for part in _FORMER_PARTS)


def value(end: Ended, meta: Meta, have: Mapping[str, str]) -> str:
    """The value of the tag: this verdict in a line, followed by those before it. `have`: the
    version's tags."""
    verdict = end.verdict
    line = _line(verdict.outcome, verdict.message, verdict.revision, end.at)
    before = [each for each in have.get(tag(meta), "").split(BETWEEN) if each]
    message, revision, at, outcome = (have.get(key, "") for key in former_tags(meta))
    if outcome:
        before.append(_line(outcome, "" if outcome == PROMOTED else message, revision, at))
    earlier = [_cut(each, EARLIER_CHARACTERS) for each in before if each != line]
    return BETWEEN.join([line, *earlier][:VERDICTS])


def _line(outcome: str, message: str, revision: str, at: str) -> str:
    words = " ".join(message.split()).replace(BETWEEN, " / ")
    why = f": {_cut(words, NEWEST_CHARACTERS)}" if words else ""
    return f"{outcome}{why} (revision {revision}, {at[:16].replace('T', ' ')} UTC)"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass
class Ledger:
    """What this process knows of one deployment's verdicts."""

    meta: Meta
    connection: str
    wanted: tuple[Ended, ...] = ()
    told: set[Ended] = field(default_factory=set)
    fresh: bool = True
    """Nothing was asked yet: the newest verdict may have been told by an earlier process."""
    found: frozenset[Ended] | None = None
    """What the status said at first sight."""
    refusal: str = ""
    """Why the registry takes no verdicts; empty after one was taken."""
    deleted: bool = False
    """The deployment is no more: its tags are to go."""

    def note(self, found: tuple[Ended, ...]) -> None:
        """Take over what the status says.
        At first sight all but the newest counts as told long ago."""
        if self.found is None:
            self.found = frozenset(found)
            self.told.update(found[1:])
        self.wanted = found
        self.told &= set(found)

    def due(self) -> tuple[Ended, ...]:
        """What is still to be told, oldest first."""
        return tuple(each for each in reversed(self.wanted) if each not in self.told)

    def inherited(self) -> bool:
        """Whether all that is due may have been told by an earlier process."""
        return self.fresh and set(self.due()) <= (self.found or set())
