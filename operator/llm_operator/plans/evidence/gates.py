"""What a candidate must show. Pure: figures, answers and thresholds in, a verdict for each gate out."""

import math
from collections.abc import Iterable, Mapping

from llm_operator.crds import GateVerdict
from llm_operator.crds.rollout import GateSpec, PrometheusQuery, SmokePrompts
from llm_operator.state import Evidence, Figures, Measured, SmokeOutcome

QUANTILE = 0.95


def judge(gates: Iterable[GateSpec], evidence: Evidence) -> tuple[GateVerdict, ...]:
    """One verdict per gate, in the order of the specification."""
    return tuple(_judge(gate, evidence) for gate in gates)


def _judge(gate: GateSpec, evidence: Evidence) -> GateVerdict:
    if gate.smoke_prompts is not None:
        found = evidence.smoke.get(gate.smoke_prompts.config_map)
        return _smoke(gate.smoke_prompts, found or SmokeOutcome(waiting="no pod of the candidate is ready yet"))
    if gate.max_error_rate is not None:
        return _error_rate(gate.max_error_rate, gate.min_requests, evidence.candidate)
    if gate.prometheus_query is not None:
        asked = evidence.queries.get(gate.prometheus_query.query)
        return _query(gate.prometheus_query, asked or Measured(waiting="not asked yet"))
    if gate.max_time_to_first_token_p95_ratio is not None:
        new = evidence.candidate.first_token
        old = evidence.stable.first_token
        name = "maxTimeToFirstTokenP95Ratio"
        most = gate.max_time_to_first_token_p95_ratio
    else:
        assert gate.max_inter_token_p95_ratio is not None
        new = evidence.candidate.inter_token
        old = evidence.stable.inter_token
        name = "maxInterTokenP95Ratio"
        most = gate.max_inter_token_p95_ratio
    return _ratio(name, most, gate.min_requests, new, old)


def failed(verdict: Iterable[GateVerdict]) -> GateVerdict | None:
    """The first gate that the candidate does not pass."""
    return next((each for each in verdict if each.state == "Failed"), None)


def cleared(verdict: Iterable[GateVerdict]) -> bool:
    """Whether nothing is awaited. Too few samples do not hold a candidate for ever: its hold is the time it has."""
    return all(each.state in ("Passed", "TooFewSamples") for each in verdict)


def told(verdict: GateVerdict) -> str:
    """A failed gate for its reader: which gate, which figure, which threshold."""
    compared = f" is {verdict.figure}, allowed is {verdict.threshold}" if verdict.figure else ""
    return f"gate {verdict.name}{compared}" + (f": {verdict.message}" if verdict.message else "")


def smoke_name(config_map: str) -> str:
    """What the gate of these prompts is called."""
    return f"smokePrompts {config_map}"


def _smoke(gate: SmokePrompts, found: SmokeOutcome) -> GateVerdict:
    name = smoke_name(gate.config_map)
    if found.waiting:
        return GateVerdict(name=name, state="Waiting", message=found.waiting)
    total = found.passed + len(found.failures)
    if found.failures:
        said = "; ".join(found.failures)
        return GateVerdict(
            name=name, state="Failed", figure=f"{found.passed} of {total} passed", threshold=str(total), message=said
        )
    return GateVerdict(name=name, state="Passed", figure=f"{total} of {total} passed")


def _error_rate(most: float, least: int, figures: Figures) -> GateVerdict:
    if figures.requests < least:
        said = f"too few requests to judge: {figures.requests:.0f}, {least} are needed"
        return GateVerdict(name="maxErrorRate", state="TooFewSamples", threshold=_text(most), message=said)
    rate = figures.errors / figures.requests
    return GateVerdict(
        name="maxErrorRate",
        state="Failed" if rate > most else "Passed",
        figure=_text(rate),
        threshold=_text(most),
        message=f"{figures.errors:.0f} of {figures.requests:.0f} answers were errors",
    )


def _ratio(name: str, most: float, least: int, new: Mapping[float, float], old: Mapping[float, float]) -> GateVerdict:
    counts = min(_count(new), _count(old))
    mine = quantile(new)
    theirs = quantile(old)
    if counts < least or mine is None or not theirs:
        said = f"too few samples to judge: candidate {_count(new):.0f}, stable {_count(old):.0f}, {least} are needed"
        return GateVerdict(name=name, state="TooFewSamples", threshold=_text(most), message=said)
    return GateVerdict(
        name=name,
        state="Failed" if mine / theirs > most else "Passed",
        figure=_text(mine / theirs),
        threshold=_text(most),
        message=f"95th percentile {mine * 1000:.0f} ms, stable {theirs * 1000:.0f} ms",
    )


def _query(gate: PrometheusQuery, found: Measured) -> GateVerdict:
    name = f"prometheusQuery {gate.query}"
    threshold = _text(gate.max)
    if found.waiting:
        return GateVerdict(name=name, state="Waiting", threshold=threshold, message=found.waiting)
    if found.value is None or math.isnan(found.value):
        said = "the query found no samples"
        return GateVerdict(name=name, state="TooFewSamples", threshold=threshold, message=said)
    failed = found.value > gate.max
    # Whoever writes a query must not read what is not theirs: of other namespaces' series no figure is told.
    figure = _text(found.value) if found.told else None
    message = None if found.told else f"the figure is {'above' if failed else 'at most'} {threshold}"
    state = "Failed" if failed else "Passed"
    return GateVerdict.model_validate(
        {"name": name, "state": state, "figure": figure, "threshold": threshold, "message": message}
    )


def _text(number: float) -> str:
    return f"{number:.4g}"


def _count(histogram: Mapping[float, float]) -> float:
    return max(histogram.values(), default=0)


def quantile(histogram: Mapping[float, float], at: float = QUANTILE) -> float | None:
    """The value that a share `at` of the samples does not exceed; None without samples.

    Linear inside a bucket, and the highest finite bound for what lies beyond it: as Prometheus' histogram_quantile.
    """
    bounds = sorted(histogram)
    rank = at * _count(histogram)
    if not rank:
        return None
    below = 0.0
    beneath = 0.0
    for bound in bounds:
        if histogram[bound] >= rank:
            if math.isinf(bound):
                return below
            inside = histogram[bound] - beneath
            return below + (bound - below) * ((rank - beneath) / inside if inside else 1.0)
        below = bound
        beneath = histogram[bound]
    return below


def window(now: Mapping[str, Figures], before: Mapping[str, Figures], pods: Iterable[str]) -> Figures:
    """What happened in these pods since `before`, added up. A pod that began anew counts from its start."""
    parts = [_since(now[pod], before.get(pod)) for pod in pods if pod in now]
    return Figures(
        requests=sum(part.requests for part in parts),
        errors=sum(part.errors for part in parts),
        first_token=_added(part.first_token for part in parts),
        inter_token=_added(part.inter_token for part in parts),
    )


def _since(now: Figures, before: Figures | None) -> Figures:
    if before is None or now.requests < before.requests:
        return now
    return Figures(
        requests=now.requests - before.requests,
        errors=max(0.0, now.errors - before.errors),
        first_token=_minus(now.first_token, before.first_token),
        inter_token=_minus(now.inter_token, before.inter_token),
    )


def _minus(now: Mapping[float, float], before: Mapping[float, float]) -> dict[float, float]:
    return {bound: max(0.0, count - before.get(bound, 0.0)) for bound, count in now.items()}


def _added(histograms: Iterable[Mapping[float, float]]) -> dict[float, float]:
    total: dict[float, float] = {}
    for histogram in histograms:
        for bound, count in histogram.items():
            total[bound] = total.get(bound, 0.0) + count
    return total
