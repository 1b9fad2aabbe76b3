"""What a candidate must show. Pure: figures, answers and thresholds in, a verdict for each gate out."""

import math
from collections.abc import Iterable

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec, PrometheusQuery, SmokePrompts
from llm_operator.plans.evidence import loadprobe
from llm_operator.state import Evidence, Measured, ProbeOutcome, SmokeOutcome

LOAD_PROBE = loadprobe.NAME

SHADOW = "shadowAgreement"


def judge(gates: Iterable[GateSpec], evidence: Evidence) -> tuple[GateVerdict, ...]:
    """One verdict per gate, in the order of the specification."""
    return tuple(_judge(gate, evidence) for gate in gates)


def _judge(gate: GateSpec, evidence: Evidence) -> GateVerdict:
    if gate.smoke_prompts is not None:
        found = evidence.smoke.get(gate.smoke_prompts.config_map)
        return _smoke(gate.smoke_prompts, found or SmokeOutcome(waiting="no pod of the candidate is ready yet"))
    if gate.load_probe is not None:
        probed = evidence.probes.get(gate.load_probe)
        return loadprobe.verdict(
            gate.load_probe, probed or ProbeOutcome(waiting="no pod of the candidate is ready yet")
        )
    if gate.prometheus_query is not None:
        asked = evidence.queries.get(gate.prometheus_query.query)
        return _query(gate.prometheus_query, asked or Measured(waiting="not asked yet"))
    if gate.shadow_agreement is not None:
        name, most = gate.shadow_agreement.bound
        none = GateVerdict(name=f"{SHADOW} {name}", state="Inconclusive", threshold=text(most), message="no copies yet")
        return evidence.shadow.get(key(gate), none)
    name, most, _ = traffic_gate(gate)
    none = GateVerdict(name=name, state="Inconclusive", threshold=text(most), message="no traffic yet")
    return evidence.traffic.get(key(gate), none)


def traffic_gate(gate: GateSpec) -> tuple[str, float, str]:
    """Name and threshold of a gate that judges by traffic, and what of Figures it counts."""
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
    return not (gate.smoke_prompts or gate.prometheus_query or gate.load_probe or gate.shadow_agreement)


def counted(specs: Iterable[GateSpec]) -> int:
    """Gates that share out the false alarms that a roll-out may have: those that judge by counts."""
    return sum(by_traffic(each) or each.shadow_agreement is not None for each in specs)


def key(gate: GateSpec) -> str:
    """What tells the gates of a specification apart: one that is changed is another."""
    return gate.model_dump_json(exclude_none=True)


def failed(verdict: Iterable[GateVerdict]) -> GateVerdict | None:
    """The first gate that the candidate does not pass."""
    return next((each for each in verdict if each.state == "Failed"), None)


def settled(verdict: Iterable[GateVerdict]) -> bool:
    """Whether no gate objects or is awaited."""
    return all(each.state in ("Passed", "Inconclusive") for each in verdict)


def undecided(verdict: Iterable[GateVerdict], *, shadow: bool = False) -> tuple[GateVerdict, ...]:
    """The gates that are neither surely passed nor surely failed: those that judge copies, or the others."""
    return tuple(each for each in verdict if each.state == "Inconclusive" and by_shadow(each) == shadow)


def kept(verdict: Iterable[GateVerdict], before: Iterable[GateVerdict]) -> tuple[GateVerdict, ...]:
    """With what the gates that judge copies said before the candidate had traffic: since then there are none."""
    known = {(each.name, each.threshold): each for each in before if by_shadow(each)}
    return tuple(known.get((each.name, each.threshold), each) for each in verdict)


def by_shadow(verdict: GateVerdict) -> bool:
    """Whether it is of a gate that judges copies of requests."""
    return verdict.name.startswith(f"{SHADOW} ")


def summary(verdict: Iterable[GateVerdict]) -> str:
    """Which gates judged and which did not, in one line; empty without gates."""
    said = {"passed": "", "not judged": ""}
    for each in verdict:
        part = "passed" if each.state == "Passed" else "not judged"
        said[part] += f"{', ' if said[part] else ''}{told(each)}"
    return "; ".join(f"{part}: {gates}" for part, gates in said.items() if gates)


def told(verdict: GateVerdict) -> str:
    """A gate for its reader: which one, figure, interval, threshold."""
    measured = _measured(verdict)
    allowed = f", allowed is {verdict.threshold}" if measured and verdict.threshold else ""
    return f"gate {verdict.name}{measured}{allowed}" + (f": {verdict.message}" if verdict.message else "")


def _measured(verdict: GateVerdict) -> str:
    """Figure and interval. A figure far from the threshold, beyond where it is looked for, has the interval alone."""
    low = verdict.low
    high = verdict.high
    if verdict.estimate:
        return f" is {verdict.estimate}" + (f" (between {low or '0'} and {high or 'any'})" if low or high else "")
    if low:
        return f" is above {low}"
    return f" is below {high}" if high else ""


def smoke_name(config_map: str) -> str:
    """What the gate of these prompts is called."""
    return f"smokePrompts {config_map}"


def _smoke(gate: SmokePrompts, found: SmokeOutcome) -> GateVerdict:
    name = smoke_name(gate.config_map)
    if found.waiting:
        return GateVerdict(name=name, state="Waiting", samples=found.pods or None, message=found.waiting)
    total = found.passed + len(found.failures)
    if found.failures:
        said = "; ".join(found.failures)
        return GateVerdict(
            name=name, state="Failed", estimate=f"{found.passed} of {total} passed", threshold=str(total), message=said
        )
    return GateVerdict(name=name, state="Passed", estimate=f"{total} of {total} passed", samples=found.pods or None)


def _query(gate: PrometheusQuery, found: Measured) -> GateVerdict:
    name = f"prometheusQuery {gate.query}"
    threshold = text(gate.max)
    if found.waiting:
        return GateVerdict(name=name, state="Waiting", threshold=threshold, message=found.waiting)
    if found.value is None or math.isnan(found.value):
        said = "the query found no samples"
        return GateVerdict(name=name, state="Inconclusive", threshold=threshold, message=said)
    failed = found.value > gate.max
    # Whoever writes a query must not read what is not theirs: of other namespaces' series no figure is told.
    figure = text(found.value) if found.told else None
    message = None if found.told else f"the figure is {'above' if failed else 'at most'} {threshold}"
    state = "Failed" if failed else "Passed"
    return GateVerdict.model_validate(
        {"name": name, "state": state, "estimate": figure, "threshold": threshold, "message": message}
    )


def text(number: float) -> str:
    """A figure in up to four digits."""
    return f"{number:.4g}"
