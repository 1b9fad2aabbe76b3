"""What the operator remembers between two looks.
All of it is lost at a restart, and then read or derived anew."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from llm_operator.crds.rollout import LoadProbe
from llm_operator.inventory import Inventory
from llm_operator.plans import names
from llm_operator.plans.evidence.copies import Copies
from llm_operator.plans.evidence.watched import Watched
from llm_operator.plans.status.verdicts import Ledger
from llm_operator.state import (
    Given,
    Key,
    Measured,
    Meta,
    Pods,
    ProbeOutcome,
    SmokeOutcome,
)
from llm_runtime.contract import is_candidate

MOST = 10_000
MOST_DIGESTS = 200_000
PODS_AT_ONCE = 4
"""Pods of one deployment that are asked at the same time."""
K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """A dict that never holds more than `most` entries:
    a new one takes the place of the one that was put first."""

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        if key not in self and len(self) >= self.most:
            del self[next(iter(self))]
        super().__setitem__(key, value)


class Written(NamedTuple):
    """A Secret as it was left."""

    version: str = ""
    """The resourceVersion of the Secret. Empty: there is none."""
    digest: str = ""
    """Digest of the manifest that it was written from, where it was."""


GONE = Written()
"""There is no Secret of that name that is ours."""


@dataclass(frozen=True)
class Memory:
    """Keyed by object, and forgotten with it;
    or bounded, where nobody tells when an entry is over."""

    inventory: Inventory = field(default_factory=Inventory)
    """What the metrics say of each object."""
    key_files: defaultdict[Key, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    """By LLMDeployment: held while its keys are read and their file is written."""
    given: dict[Key, Given] = field(default_factory=dict)
    """By LLMDeployment: what its pods were given, as last written or read."""
    untold: set[Key] = field(default_factory=set)
    """LLMDeployments some of whose pods may not know that their key file has changed."""
    ledgers: dict[Key, Ledger] = field(default_factory=dict)
    """By LLMDeployment: the verdicts that the registry was told.
    Dropped once they are gone from there, too."""
    uids: dict[Key, str] = field(default_factory=dict)
    """By LLMDeployment: the uid by which other entries know it."""
    unwell: set[Key] = field(default_factory=set)
    """Objects whose last look met a fault that may pass by itself. A second time it is told."""
    elsewhere: dict[Key, str] = field(default_factory=dict)
    """Objects that another installation works on, and which one. Told once."""
    secrets: dict[tuple[str, str], Written] = field(default_factory=dict)
    """Each Secret as last written, by (namespace, name), as Secrets are not watched."""
    digests: Bounded[tuple[str, str, str], str] = field(
        default_factory=lambda: Bounded(MOST_DIGESTS)
    )
    """Key digests already derived, by (deployment uid, ApiKey uid, key id):
    each saves one read of a Secret."""
    watched: Bounded[str, Watched] = field(default_factory=Bounded)
    """What gates have seen of a candidate's traffic, by deployment uid.
    Counted anew after a restart."""
    copies: Bounded[tuple[str, str], Copies] = field(default_factory=Bounded)
    """What gates have seen of the copies for a candidate, by (deployment uid, candidate). Counted
    anew after a restart. A candidate is a revision, or a version of an adapter by its name in the
    pods."""
    shadow_tokens: Bounded[str, tuple[str, str]] = field(default_factory=Bounded)
    """By deployment uid: a candidate and what copies for it carry. Another one after a restart."""
    smoke: Bounded[tuple[str, str, str, str, str], SmokeOutcome] = field(default_factory=Bounded)
    """What each pod last made of smoke prompts, by (deployment uid, candidate, ConfigMap, digest of
    its content, pod uid and restarts)."""
    asking: dict[tuple[str, str, str, str, str], "asyncio.Task[None]"] = field(default_factory=dict)
    """Tasks that ask these prompts now."""
    places: defaultdict[str, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(PODS_AT_ONCE))
    )
    """By deployment uid: held while a pod of it is asked."""
    probes: Bounded[tuple[str, str, LoadProbe], ProbeOutcome] = field(default_factory=Bounded)
    """What became of load probes, by (deployment uid, candidate, probe)."""
    probing: dict[tuple[str, str, LoadProbe], "asyncio.Task[None]"] = field(default_factory=dict)
    """Tasks of load probes that run now."""
    measured: Bounded[tuple[str, str, str], tuple[datetime, Measured]] = field(
        default_factory=Bounded
    )
    """What Prometheus answered last, by (deployment uid, server, query)."""
    handed: Bounded[str, Pods] = field(default_factory=Bounded)
    """Whom each Job of an evaluation was last told to ask, by its uid."""
    evaluating: Bounded[str, frozenset[str]] = field(default_factory=Bounded)
    """By deployment uid: the Jobs of evaluations that there may be.
    Absent: this process has not looked."""

    def meet(self, key: Key, uid: str) -> None:
        """Note which LLMDeployment has this name,
        and drop what was gathered for one that had it before."""
        if self.uids.get(key) != uid:
            self._part(key)
            self.uids[key] = uid

    def _part(self, key: Key) -> None:
        if (uid := self.uids.pop(key, None)) is not None:
            self.end_adapters(uid)
            self.end_rollout(uid)
            self.evaluating.pop(uid, None)

    def forget(self, key: Key) -> None:
        """Drop everything about an object that is gone."""
        self._part(key)
        self.inventory.forget(key)
        for known in (self.key_files, self.given, self.elsewhere):
            known.pop(key, None)
        for some in (self.untold, self.unwell):
            some.discard(key)
        if key.kind == "LLMDeployment":
            for secret in names.secrets(Meta(key.kind, key.namespace, key.name, "", 0)):
                self.secrets.pop((key.namespace, secret), None)

    def end_rollout(self, uid: str) -> None:
        """Drop what was gathered for the gates of a roll-out that is over."""
        self.watched.pop(uid, None)
        self.shadow_tokens.pop(uid, None)
        self._end_answers(uid, lambda candidate: not is_candidate(candidate))
        for query in [known for known in self.measured if known[0] == uid]:
            del self.measured[query]

    def end_adapters(self, uid: str, judged: Collection[str] = ()) -> None:
        """Drop what was gathered for candidates of adapters but those that are `judged` still."""
        self._end_answers(
            uid, lambda candidate: is_candidate(candidate) and candidate not in judged
        )

    def _end_answers(self, uid: str, over: Callable[[str], bool]) -> None:
        outcomes: tuple[dict[Any, Any], ...] = (self.copies, self.probes, self.smoke)
        for found in outcomes:
            for known in [each for each in found if each[0] == uid and over(each[1])]:
                del found[known]
        tasks: tuple[dict[Any, asyncio.Task[None]], ...] = (self.probing, self.asking)
        for running in tasks:
            for known in [each for each in running if each[0] == uid and over(each[1])]:
                running.pop(known).cancel()
        if not any(known[0] == uid for known in self.asking):
            self.places.pop(uid, None)
