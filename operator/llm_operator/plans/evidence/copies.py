"""What the gates of one candidate have seen of the copies that it was sent,
as the pods count them that sent these. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec, ShadowAgreement
from llm_operator.plans.evidence import gates
from llm_operator.plans.evidence.buckets import Buckets
from llm_operator.plans.evidence.trials import Answer, Counts, ErrorTrial, LatencyTrial, Rules
from llm_operator.plans.evidence.watched import FALSE_ALARM
from llm_operator.state import Shadowed

SHARES = {
    "minExact": ("exact", "had another text"),
    "minSimilarity": ("similarity", "differed"),
    "minSameFinishReason": ("finishReason", "ended for another reason"),
    "minJsonValid": ("json", "were no JSON"),
}
"""By bound: what pods count for it, and what a bad answer was."""
SIZES = {"maxTokensP95Ratio": "tokens", "maxSecondsP95Ratio": "seconds"}
NOTHING = Shadowed()
K = TypeVar("K", str, float)


@dataclass
class Copies:
    """All gates of one candidate that judge copies.
    In memory: an operator that restarts counts anew."""

    last: dict[str, Shadowed] = field(default_factory=dict)
    """What each pod said when it was last asked."""
    trials: dict[str, ErrorTrial | LatencyTrial] = field(default_factory=dict)
    """By gates.key."""
    began: dict[str, str] = field(default_factory=dict)

    def look(
        self, specs: Iterable[GateSpec], now: Mapping[str, Shadowed], *, at: str
    ) -> dict[str, GateVerdict]:
        """One look at what pods say of this candidate."""
        new = [since(found, self.last.get(pod, NOTHING)) for pod, found in now.items()]
        self.last |= now
        specs = tuple(specs)
        judging = {gates.key(each): each for each in specs if each.shadow_agreement}
        verdicts = dict[str, GateVerdict]()
        for key, spec in judging.items():
            assert spec.shadow_agreement is not None
            if key not in self.trials:
                rules = Rules(
                    false_alarm=FALSE_ALARM / gates.counted(specs), least=spec.min_requests
                )
                self.trials[key] = _trial(spec.shadow_agreement, rules)
                self.began[key] = at
                # One that is added later judges what was counted before, too.
                seen: Iterable[Shadowed] = now.values()
            else:
                seen = new
            _enter(self.trials[key], spec.shadow_agreement, list(seen))
            verdicts[key] = _verdict(
                spec.shadow_agreement, self.trials[key].answer(), self.began[key], self._results()
            )
        return verdicts

    def _results(self) -> str:
        counted = dict[str, float]()
        for found in self.last.values():
            for result, count in found.results.items():
                counted[result] = counted.get(result, 0) + count
        return ", ".join(f"{count:.0f} {result}" for result, count in sorted(counted.items()))


def _trial(spec: ShadowAgreement, rules: Rules) -> ErrorTrial | LatencyTrial:
    name, value = spec.bound
    if name in SIZES:
        return LatencyTrial(value, rules)
    return ErrorTrial(1 - value, rules, bad=SHARES[name][1])


def _enter(trial: ErrorTrial | LatencyTrial, spec: ShadowAgreement, seen: list[Shadowed]) -> None:
    name, _ = spec.bound
    if isinstance(trial, LatencyTrial):
        own = Buckets()
        stable = Buckets()
        for each in seen:
            own = own + Buckets.of(each.fine.get(("candidate", SIZES[name]), {}))
            stable = stable + Buckets.of(each.fine.get(("stable", SIZES[name]), {}))
        trial.look(own, stable)
        return
    what = SHARES[name][0]
    compared = sum(each.compared.get(what, 0) for each in seen)
    trial.look(Counts(compared, sum(each.difference.get(what, 0) for each in seen)), Counts())


def _verdict(spec: ShadowAgreement, answer: Answer, began: str, results: str) -> GateVerdict:
    name, bound = spec.bound
    figures = answer.estimate, answer.low, answer.high
    if name in SHARES:
        # Judged is how many differ, told how many agree.
        estimate, low, high = (None if each is None else 1 - each for each in figures)
        figures = estimate, high, low
    told = [None if each is None else gates.text(each) for each in figures]
    return GateVerdict(
        name=f"{gates.SHADOW} {name}",
        state=answer.state,
        estimate=told[0],
        threshold=gates.text(bound),
        low=told[1],
        high=told[2],
        samples=round(answer.samples),
        since=began,
        message=f"{answer.message}; copies: {results or 'none yet'}",
    )


def since(now: Shadowed, before: Shadowed) -> Shadowed:
    """What was counted since `before`.
    Counters that went back belong to a new process, which counts from its start."""
    went_back = any(now.results.get(name, 0) < count for name, count in before.results.items())
    if went_back:
        return now
    return replace(
        now,
        compared=_minus(now.compared, before.compared),
        difference=_minus(now.difference, before.difference),
        fine={kind: _minus(counts, before.fine.get(kind, {})) for kind, counts in now.fine.items()},
    )


def _minus(now: Mapping[K, float], before: Mapping[K, float]) -> dict[K, float]:
    return {name: max(0.0, count - before.get(name, 0.0)) for name, count in now.items()}
