"""What the gates of one candidate have seen of the traffic:
figures of pods in, a verdict for each gate out."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.evidence.buckets import Buckets
from llm_operator.plans.evidence.means import MeanTrial, MemoryTrial
from llm_operator.plans.evidence.trials import Counts, ErrorTrial, LatencyTrial, Rules
from llm_operator.state import Figures

FALSE_ALARM = 0.01
"""Share of roll-outs of a candidate within all thresholds that may be taken back,
by all gates and looks together."""


@dataclass
class Running:
    """One gate's trial."""

    trial: ErrorTrial | LatencyTrial | MeanTrial | MemoryTrial
    figure: str
    """Field of Figures that it counts, as gates.traffic_gate says."""
    since: str
    """Time at which it began."""
    earlier: Figures
    """Counts of stable's pods at that time.
    They say what is usual where stable has had too few requests since."""
    seeded: bool
    """Whether `earlier` was used, or is not needed."""
    untold: str = ""
    """The side (candidate or stable) whose runtime is too old to report the figure; empty: none."""

    def enter(self, own: Figures, stable: Figures, *, traffic: bool) -> None:
        """What happened in one look."""
        silent = (
            side
            for side, each in (("candidate", own), ("stable", stable))
            if getattr(each, self.figure) is None
        )
        self.untold = next(silent, "")
        if isinstance(self.trial, MemoryTrial):
            if traffic:
                self.trial.look(
                    own.memory_bytes, stable.memory_bytes, own.requests, stable.requests
                )
            return None
        if isinstance(self.trial, ErrorTrial):
            if not traffic:
                return self.trial.before(_counts(stable))
            if not self.seeded and self.trial.other.requests < self.trial.rules.least:
                self.trial.before(_counts(self.earlier))
            self.seeded = True
            return self.trial.look(_counts(own), _counts(stable))
        if not traffic:
            return self.trial.before(self._buckets(stable))
        if not self.seeded and self.trial.other < self.trial.rules.least:
            self.trial.before(self._buckets(self.earlier))
        self.seeded = True
        return self.trial.look(self._buckets(own), self._buckets(stable))

    def _buckets(self, figures: Figures) -> Buckets:
        return Buckets.of(getattr(figures, self.figure) or {})

    def verdict(self, spec: GateSpec) -> GateVerdict:
        """What the gate says now."""
        name, most, _ = gates.traffic_gate(spec)
        answer = self.trial.answer()
        if self.untold:
            why = (
                f"the runtime of a {self.untold} pod is too old to tell it: use a newer image, or"
                " remove the gate"
            )
            answer = replace(answer, state="Inconclusive", message=why)
        figure = answer.estimate
        low = answer.low
        high = answer.high
        if self.figure == "token_gap":
            # Measured as the time of a token, told as tokens per time.
            figure, low, high = _inverse(figure), _inverse(high), _inverse(low)
        return GateVerdict(
            name=name,
            state=answer.state,
            estimate=_text(figure),
            threshold=gates.text(most),
            low=_text(low),
            high=_text(high),
            samples=round(answer.samples),
            stable_samples=round(answer.beside),
            since=self.since,
            message=answer.message,
        )


@dataclass
class Watched:
    """All gates of one candidate that judge by traffic.
    In memory: an operator that restarts counts anew."""

    revision: str
    switched: bool
    """Stable has its traffic before the candidate's, not beside it (Strategy.switches)."""
    last: dict[str, Figures] = field(default_factory=dict)
    """What each pod said when it was last asked."""
    running: dict[str, Running] = field(default_factory=dict)
    """By gates.key."""

    def look(
        self,
        specs: Iterable[GateSpec],
        now: Mapping[str, Figures],
        *,
        own: Collection[str],
        stable: Collection[str],
        traffic: bool,
        at: str,
    ) -> dict[str, GateVerdict]:
        """One look at the candidate's `own` pods and the `stable` ones.
        `traffic`: the candidate has had some."""
        judging = {gates.key(each): each for each in specs if gates.by_traffic(each)}
        if self.last:
            # A pod that is new since the last look counts from its start,
            # and so does one that began anew.
            mine = added(since(now[pod], self.last.get(pod)) for pod in own if pod in now)
            theirs = added(since(now[pod], self.last.get(pod)) for pod in stable if pod in now)
            for running in self.running.values():
                if running.figure == "memory_bytes":
                    # What pods hold, not what they did since.
                    running.enter(_told(own, now), _told(stable, now), traffic=traffic)
                else:
                    running.enter(mine, theirs, traffic=traffic)
        for key, spec in judging.items():
            if key not in self.running:
                earlier = added(now[pod] for pod in stable if pod in now)
                self.running[key] = _begun(
                    spec, gates.counted(specs), earlier, switched=self.switched, at=at
                )
        self.last = {
            pod: figures
            for pod, figures in {**self.last, **now}.items()
            if pod in own or pod in stable
        }
        return {key: self.running[key].verdict(spec) for key, spec in judging.items()}


def _begun(spec: GateSpec, judging: int, earlier: Figures, *, switched: bool, at: str) -> Running:
    _, most, figure = gates.traffic_gate(spec)
    rules = Rules(false_alarm=FALSE_ALARM / judging, least=spec.min_requests)
    trial: ErrorTrial | LatencyTrial | MeanTrial | MemoryTrial
    if figure == "requests":
        trial = ErrorTrial(most, rules, switched)
    elif figure == "memory_bytes":
        trial = MemoryTrial(most, rules)
    elif figure in ("answer_tokens", "token_gap"):
        trial = MeanTrial(1 / most if figure == "token_gap" else most, rules, switched)
    else:
        trial = LatencyTrial(most, rules, switched)
    return Running(trial, figure, at, earlier, seeded=not switched)


def _told(pods: Iterable[str], now: Mapping[str, Figures]) -> Figures:
    return added(now[pod] for pod in pods if pod in now)


def _inverse(number: float | None) -> float | None:
    return 1 / number if number else None


def _counts(figures: Figures) -> Counts:
    return Counts(figures.requests, figures.errors)


def _text(number: float | None) -> str | None:
    return None if number is None else gates.text(number)


def since(now: Figures, before: Figures | None) -> Figures:
    """What one pod did since `before`.
    Counters that went back belong to a new process, which counts from its start."""
    if before is None or now.requests < before.requests or _went_back(now, before):
        return now
    return replace(
        now,
        requests=now.requests - before.requests,
        errors=max(0.0, now.errors - before.errors),
        first_token=_minus(now.first_token, before.first_token),
        inter_token=_minus(now.inter_token, before.inter_token),
        token_gap=None if now.token_gap is None else _minus(now.token_gap, before.token_gap or {}),
        answer_tokens=(
            None
            if now.answer_tokens is None
            else _minus(now.answer_tokens, before.answer_tokens or {})
        ),
    )


def _went_back(now: Figures, before: Figures) -> bool:
    pairs = (
        (now.first_token, before.first_token),
        (now.inter_token, before.inter_token),
        (now.answer_tokens or {}, before.answer_tokens or {}),
    )
    return any(max(new.values(), default=0) < max(old.values(), default=0) for new, old in pairs)


def _minus(now: Mapping[float, float], before: Mapping[float, float]) -> dict[float, float]:
    return {bound: max(0.0, count - before.get(bound, 0.0)) for bound, count in now.items()}


def added(figures: Iterable[Figures]) -> Figures:
    """The figures of several pods as one."""
    parts = tuple(figures)
    return Figures(
        requests=sum(part.requests for part in parts),
        errors=sum(part.errors for part in parts),
        first_token=_joined(part.first_token for part in parts),
        inter_token=_joined(part.inter_token for part in parts),
        token_gap=_known([part.token_gap for part in parts]),
        answer_tokens=_known([part.answer_tokens for part in parts]),
        memory_bytes=(
            max((part.memory_bytes or 0.0 for part in parts), default=0.0)
            if _tell_memory(parts)
            else None
        ),
    )


def _tell_memory(parts: Iterable[Figures]) -> bool:
    return all(part.memory_bytes is not None for part in parts)


def _known(histograms: list[Mapping[float, float] | None]) -> dict[float, float] | None:
    """The histograms as one; None where a pod reports none, because its part would be missing."""
    told = [each for each in histograms if each is not None]
    return _joined(told) if len(told) == len(histograms) else None


def _joined(histograms: Iterable[Mapping[float, float]]) -> dict[float, float]:
    together = Buckets()
    for each in histograms:
        together = together + Buckets.of(each)
    return dict(zip(together.bounds, together.upto, strict=True))
