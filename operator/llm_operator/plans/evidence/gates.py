"""The verdict of each gate, from figures, answers and thresholds; and which gates object. Pure."""

import hashlib
import math
from collections.abc import Iterable

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import EvaluationSpec, GateSpec, PrometheusQuery, SmokePrompts
from llm_operator.plans.evidence import loadprobe
from llm_operator.state import (
    NO_POD,
    Estimate,
    EvaluationOutcome,
    Evidence,
    Measured,
    ProbeOutcome,
    SmokeOutcome,
)

LOAD_PROBE = loadprobe.NAME

SHADOW = "shadowAgreement"


def judge(gates: Iterable[GateSpec], evidence: Evidence) -> tuple[GateVerdict, ...]:
    """One verdict per gate, in the order of the specification."""
    return tuple(
        _judge(gate, evidence).model_copy(update={"gate_digest": digest(gate)}) for gate in gates
    )


def _judge(gate: GateSpec, evidence: Evidence) -> GateVerdict:
    if gate.smoke_prompts is not None:
        found = evidence.smoke.get(gate.smoke_prompts.config_map)
        return _smoke(
            gate.smoke_prompts,
            found or SmokeOutcome(waiting=NO_POD),
        )
    if gate.load_probe is not None:
        probed = evidence.probes.get(gate.load_probe)
        return loadprobe.verdict(gate.load_probe, probed or ProbeOutcome(waiting=NO_POD))
    if gate.prometheus_query is not None:
        asked = evidence.queries.get(gate.prometheus_query)
        return _query(gate.prometheus_query, asked or Measured(waiting="not asked yet"))
    if gate.evaluation is not None:
        made = evidence.evaluations.get(key(gate))
        return _evaluation(
            gate.evaluation,
            made or EvaluationOutcome(waiting=NO_POD),
        )
    if gate.shadow_agreement is not None:
        name, most = gate.shadow_agreement.bound
        none = GateVerdict(
            name=f"{SHADOW} {name}",
            state="Inconclusive",
            threshold=text(most),
            message="no copies yet",
        )
        return evidence.shadow.get(key(gate), none)
    name, most, _ = traffic_gate(gate)
    none = GateVerdict(
        name=name, state="Inconclusive", threshold=text(most), message="no traffic yet"
    )
    return evidence.traffic.get(key(gate), none)


def traffic_gate(gate: GateSpec) -> tuple[str, float, str]:
    """Name and threshold of a gate that judges by traffic, and the field of Figures it counts."""
    if gate.max_error_rate is not None:
        return "maxErrorRate", gate.max_error_rate, "requests"
    if gate.max_time_to_first_token_p95_ratio is not None:
        return "maxTimeToFirstTokenP95Ratio", gate.max_time_to_first_token_p95_ratio, "first_token"
    if gate.max_tokens_per_answer_ratio is not None:
        return "maxTokensPerAnswerRatio", gate.max_tokens_per_answer_ratio, "answer_tokens"
    if gate.min_tokens_per_second_ratio is not None:
        return "minTokensPerSecondRatio", gate.min_tokens_per_second_ratio, "token_gap"
    if gate.max_memory_ratio is not None:
        return "maxMemoryRatio", gate.max_memory_ratio, "memory_bytes"
    assert gate.max_inter_token_p95_ratio is not None
    return "maxInterTokenP95Ratio", gate.max_inter_token_p95_ratio, "inter_token"


def by_traffic(gate: GateSpec) -> bool:
    """Whether it judges by the traffic that the operator counts."""
    return gate.needs_traffic and gate.prometheus_query is None


def counted(specs: Iterable[GateSpec]) -> int:
    """Gates that share out the false alarms that a roll-out may have:
    those that judge by counts."""
    return sum(by_traffic(each) or each.shadow_agreement is not None for each in specs)


def key(gate: GateSpec) -> str:
    """What tells the gates of a specification apart: one that is changed is another."""
    return gate.model_dump_json(exclude_none=True)


def digest(gate: GateSpec) -> str:
    """Digest of the key, for verdicts, which are kept in the status."""
    return hashlib.sha256(key(gate).encode()).hexdigest()[:16]


def decided_before(gate: GateSpec, told: Iterable[GateVerdict]) -> GateVerdict | None:
    """The verdict among `told` on the gate as it is written now; None where it had not decided."""
    mark = digest(gate)
    return next(
        (each for each in told if each.gate_digest == mark and each.state != "Waiting"), None
    )


def failed(verdicts: Iterable[GateVerdict]) -> GateVerdict | None:
    """The first gate that the candidate does not pass."""
    return next((each for each in verdicts if each.state == "Failed"), None)


def objection(verdicts: Iterable[GateVerdict]) -> str:
    """What is told of the first gate that the candidate does not pass; empty: none has failed."""
    found = failed(verdicts)
    return describe(found) if found is not None else ""


def no_objection(verdicts: Iterable[GateVerdict]) -> bool:
    """Whether no gate has failed or is awaited. An inconclusive one does not object."""
    return all(each.state in ("Passed", "Inconclusive") for each in verdicts)


def undecided(verdicts: Iterable[GateVerdict], *, shadow: bool = False) -> tuple[GateVerdict, ...]:
    """The gates that are neither surely passed nor surely failed:
    those that judge copies, or the others."""
    return tuple(
        each for each in verdicts if each.state == "Inconclusive" and by_shadow(each) == shadow
    )


def with_shadow_verdicts_kept(
    verdicts: Iterable[GateVerdict], before: Iterable[GateVerdict]
) -> tuple[GateVerdict, ...]:
    """The verdicts, with those of gates that judge copies as they were before the candidate had
    traffic, because there are no copies since then."""
    known = {each.gate_digest: each for each in before if by_shadow(each)}
    return tuple(known.get(each.gate_digest, each) for each in verdicts)


def by_shadow(verdict: GateVerdict) -> bool:
    """Whether it is the verdict of a gate that judges copies of requests."""
    return verdict.name.startswith(f"{SHADOW} ")


def summary(verdicts: Iterable[GateVerdict]) -> str:
    """Which gates judged and which did not, in one line; empty without gates."""
    said = {"passed": "", "not judged": ""}
    for each in verdicts:
        part = "passed" if each.state == "Passed" else "not judged"
        said[part] += f"{', ' if said[part] else ''}{describe(each)}"
    return "; ".join(f"{part}: {gates}" for part, gates in said.items() if gates)


def describe(verdict: GateVerdict) -> str:
    """A gate for its reader: which one, figure, interval, threshold."""
    measured = _measured(verdict)
    allowed = f", allowed is {verdict.threshold}" if measured and verdict.threshold else ""
    return f"gate {verdict.name}{measured}{allowed}" + (
        f": {verdict.message}" if verdict.message else ""
    )


def _measured(verdict: GateVerdict) -> str:
    """Figure and interval. A figure far from the threshold,
    beyond where it is looked for, has the interval alone."""
    low = verdict.low
    high = verdict.high
    if verdict.estimate:
        return f" is {verdict.estimate}" + (
            f" (between {low or '0'} and {high or 'any'})" if low or high else ""
        )
    if low:
        return f" is above {low}"
    return f" is below {high}" if high else ""


def smoke_name(config_map: str) -> str:
    """What the gate of these prompts is called."""
    return f"smokePrompts {config_map}"


def _smoke(gate: SmokePrompts, found: SmokeOutcome) -> GateVerdict:
    name = smoke_name(gate.config_map)
    if found.waiting:
        return GateVerdict(
            name=name, state="Waiting", samples=found.pods or None, message=found.waiting
        )
    total = found.passed + len(found.failures)
    if found.failures:
        said = "; ".join(found.failures)
        return GateVerdict(
            name=name,
            state="Failed",
            estimate=f"{found.passed} of {total} passed",
            threshold=str(total),
            message=said,
        )
    return GateVerdict(
        name=name, state="Passed", estimate=f"{total} of {total} passed", samples=found.pods or None
    )


def _query(gate: PrometheusQuery, found: Measured) -> GateVerdict:
    name = f"prometheusQuery {gate.query}"
    threshold = text(gate.max)
    if found.waiting:
        return GateVerdict(name=name, state="Waiting", threshold=threshold, message=found.waiting)
    if found.value is None or math.isnan(found.value):
        said = "the query found no samples"
        return GateVerdict(name=name, state="Inconclusive", threshold=threshold, message=said)
    failed = found.value > gate.max
    # The author of a query must not read other namespaces' series, so their figures are not told.
    figure = text(found.value) if found.told else None
    message = (
        None if found.told else f"the figure is {'above' if failed else 'at most'} {threshold}"
    )
    state = "Failed" if failed else "Passed"
    return GateVerdict.model_validate(
        {
            "name": name,
            "state": state,
            "estimate": figure,
            "threshold": threshold,
            "message": message,
        }
    )


def is_evaluation(verdict: GateVerdict) -> bool:
    """Whether it is the verdict of an evaluation, which traffic will not decide."""
    return verdict.name.startswith(_EVALUATION)


def without_traffic(verdict: GateVerdict) -> bool:
    """Whether it is the verdict of a gate with evidence of its own, made before the candidate gets
    traffic: an evaluation or a load probe."""
    return is_evaluation(verdict) or verdict.name == LOAD_PROBE


_EVALUATION = "evaluation "
CLEARLY = 0.05
"""A score that is lower than allowed by this much,
or by as much again as is allowed, is clearly too low."""


def _evaluation(gate: EvaluationSpec, found: EvaluationOutcome) -> GateVerdict:
    """The worse of its two checks."""
    if found.kept is not None:
        return found.kept
    name = f"{_EVALUATION}{gate.dataset}"
    if found.waiting:
        return GateVerdict(name=name, state="Waiting", message=found.waiting)
    checks: list[tuple[str, str, Estimate, float]] = []
    least = gate.min_score
    if least is not None and found.score is not None:
        figure = found.score
        excluded = figure.low >= least - max(1 - least, CLEARLY)
        state = _checked(failed=figure.high < least, passed=figure.figure >= least and excluded)
        checks.append((state, "the score", figure, least))
    most = gate.max_drop_vs_stable
    if most is not None and found.drop is not None:
        figure = found.drop
        excluded = figure.high <= most + max(most, CLEARLY)
        state = _checked(failed=figure.low > most, passed=figure.figure <= most and excluded)
        checks.append((state, "the drop below stable", figure, most))
    if not checks:
        return GateVerdict(
            name=name, state="Inconclusive", samples=found.samples, message=found.message
        )
    state, what, figure, threshold = min(checks, key=lambda check: _WORST.index(check[0]))
    others = [f"{other[1]} is {text(other[2].figure)}" for other in checks if other[1] != what]
    return GateVerdict.model_validate(
        {
            "name": name,
            "state": state,
            "estimate": text(figure.figure),
            "threshold": text(threshold),
            "low": text(figure.low),
            "high": text(figure.high),
            "samples": found.samples,
            "stable_samples": found.samples if found.drop is not None else None,
            "message": "; ".join((f"this is {what}", *others, *filter(None, [found.message]))),
        }
    )


_WORST = ("Failed", "Inconclusive", "Passed")


def _checked(*, failed: bool, passed: bool) -> str:
    return "Failed" if failed else "Passed" if passed else "Inconclusive"


def text(number: float) -> str:
    """A figure in up to four digits."""
    return f"{number:.4g}"
