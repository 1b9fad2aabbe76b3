"""How roll-outs ended, read off the status; the tags that tell the registry; a memory of what was told."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from llm_operator.crds import LLMDeploymentStatus
from llm_operator.state import Meta, Observed, Verdict
from llm_runtime import contract

PROMOTED, FAILED = "Promoted", "Failed"
MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class Ended:
    """The end of a roll-out and its moment."""

    verdict: Verdict
    at: str


def ended(observed: Observed, status: LLMDeploymentStatus) -> tuple[Ended, ...]:
    """The last verdict on each version, newest first.

    The status alone tells, so that a crash between status and tag loses nothing. A version that failed in another
    configuration than the one in which it serves is not at fault.
    """
    models = _models(observed)
    found: dict[tuple[str, str], Ended] = {}

    def note(revision: str, version: str, outcome: str, message: str, at: str | None) -> None:
        model = models.get(revision)
        if model and at:
            verdict = Verdict(model, version, outcome, message, revision)
            found.setdefault((model, version), Ended(verdict, at))

    if stable := status.stable:
        note(stable.revision, stable.version, PROMOTED, f"revision {stable.revision} serves", stable.started_at)
    for entry in status.history:
        if entry.outcome == "Superseded":
            note(entry.revision, entry.version, PROMOTED, f"revision {entry.revision} served", entry.started_at)
        elif entry.outcome != "Replaced":
            note(entry.revision, entry.version, FAILED, entry.message or "", entry.ended_at)
    return tuple(sorted(found.values(), key=lambda each: each.at, reverse=True))


def _models(observed: Observed) -> dict[str, str]:
    """The registered model of each revision that is still there, of those on the server that the spec names."""
    found = {}
    for revision, children in observed.revisions.items():
        text = ((children.config or {}).get("data") or {}).get(contract.CONFIG_FILE)
        mlflow = (json.loads(text).get("model") or {}).get("mlflow") if text else None
        if mlflow and observed.connection and mlflow["trackingUri"] == observed.connection.tracking_uri:
            found[revision] = str(mlflow["name"])
    return found


def tags(meta: Meta, told: Ended) -> dict[str, str]:
    """Under keys of the deployment's own, as several may serve one version; the outcome comes last."""
    prefix = f"llm-operator.{meta.namespace}.{meta.name}"
    return {
        f"{prefix}.message": told.verdict.message[:MESSAGE_CHARACTERS],
        f"{prefix}.revision": told.verdict.revision,
        f"{prefix}.time": told.at,
        f"{prefix}.verdict": told.verdict.outcome,
    }


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

    def note(self, found: tuple[Ended, ...]) -> None:
        """Take over what the status says. At first sight all but the newest counts as told long ago."""
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


def same(wanted: dict[str, str], have: Iterable[tuple[str, str]]) -> bool:
    """Whether all the tags are there already."""
    return wanted.items() <= set(have)
