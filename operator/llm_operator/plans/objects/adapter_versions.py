"""Which version of each adapter answers, and which waits for the gates of its adapter. Pure."""

from collections.abc import Iterable
from dataclasses import replace

from llm_operator.crds import AdapterCandidate, AdapterStatus
from llm_operator.plans import names
from llm_operator.plans.evidence import gates
from llm_operator.state import (
    AdapterSpread,
    AdapterVersions,
    Manifest,
    Observed,
    ResolvedAdapter,
)

_REMEMBERED = (
    "gates",
    "ready_replicas",
    "waiting_since",
    "shadowed_since",
    "undecided_since",
    "outcome",
    "message",
)
"""What is known of a candidate from look to look."""


def candidates(observed: Observed) -> tuple[AdapterVersions, ...]:
    """Before anything is judged: what has to be asked, and where it is loaded."""
    serving = {each.name: each for each in observed.status.adapters}
    known = {each.name: each for each in observed.status.adapter_candidates}
    found = [
        _versions(adapter, serving.get(adapter.spec.name), known.get(adapter.spec.name))
        for adapter in observed.adapters
    ]
    pods = _pods(observed) if any(each.judged for each in found) else []
    return tuple(
        replace(each, spread=_spread(observed, each.judged, pods)) if each.judged else each
        for each in found
    )


def answers(observed: Observed, adapter: AdapterStatus, pod: Manifest) -> bool:
    """Whether clients get this version of the adapter from the pod."""
    figures = observed.figures.get(pod["metadata"]["name"])
    return figures is not None and figures.adapters.get(adapter.name) == adapter.version


def _pods(observed: Observed) -> list[tuple[str, Manifest]]:
    """The ready pods of the stable revision, or of all where there is none, each with its revision.

    What is wrong with the answers of another revision may be the fault of its model.
    """
    stable = observed.status.stable.revision if observed.status.stable else None
    asked = [each for each in observed.revisions.values() if stable in (None, each.revision)]
    return [(each.revision, pod) for each in asked for pod in each.ready_pods]


def _spread(
    observed: Observed, candidate: AdapterCandidate, pods: Iterable[tuple[str, Manifest]]
) -> AdapterSpread:
    name = names.loaded_as(candidate)
    loaded = dict[str, list[Manifest]]()
    behind = list[str]()
    failed = dict[str, str]()
    for revision_id, pod in pods:
        named = pod["metadata"]["name"]
        figures = observed.figures.get(named)
        if figures is not None and name in figures.adapters:
            loaded.setdefault(revision_id, []).append(pod)
            continue
        behind.append(named)
        if figures is not None and name in figures.adapter_failures:
            failed[named] = figures.adapter_failures[name]
    ready = len(behind) + sum(map(len, loaded.values()))
    if not behind:
        return AdapterSpread(loaded, "" if loaded else "no pod is ready", failed, ready)
    first = next(iter(failed), behind[0])
    why = f": {failed[first]}" if first in failed else " yet"
    more = f", and in {len(behind) - 1} more" if len(behind) > 1 else ""
    return AdapterSpread(loaded, f"not loaded in pod {first}{why}{more}", failed, ready)


def _versions(
    adapter: ResolvedAdapter, serving: AdapterStatus | None, candidate: AdapterCandidate | None
) -> AdapterVersions:
    if adapter.resolution.fault is not None:
        # The version of the reference is not known, so nothing is promoted and nothing forgotten.
        return AdapterVersions(serving, candidate if adapter.spec.gated else None)
    found = _pin(adapter, filter(None, (candidate, serving)))
    if not adapter.spec.gated or (serving is not None and found.identity == serving.identity):
        return AdapterVersions(found if serving is None else _as_before(found, serving))
    same = candidate if candidate and candidate.identity == found.identity else None
    begun = AdapterCandidate.model_validate(found.model_dump())
    if same is None or _other_gates(adapter, same):
        return AdapterVersions(serving, begun)
    known = {name: getattr(same, name) for name in _REMEMBERED}
    return AdapterVersions(serving, begun.model_copy(update=known))


def _as_before(found: AdapterStatus, serving: AdapterStatus) -> AdapterStatus:
    same = found.identity == serving.identity
    return found.model_copy(update={"judged": serving.judged}) if same else found


def _other_gates(adapter: ResolvedAdapter, candidate: AdapterCandidate) -> bool:
    wanted = {gates.digest(gate) for gate in adapter.spec.checks}
    return bool(candidate.gates) and wanted != {each.gate_digest for each in candidate.gates}


def _pin(adapter: ResolvedAdapter, known: Iterable[AdapterStatus]) -> AdapterStatus:
    """What the reference stands for now."""
    model = adapter.resolution.model
    asked = adapter.spec.mlflow
    assert model is not None
    made = model.registered_at or None
    numbered = (asked.connection, model.name, model.version)
    before = next(
        (each for each in known if (each.connection, each.model, each.version) == numbered), None
    )
    return AdapterStatus(
        name=adapter.spec.name,
        model=model.name,
        version=model.version,
        alias=asked.alias,
        stage=asked.stage,
        connection=asked.connection,
        sub_path=asked.sub_path or None,
        registered_at=made or (before.registered_at if before else None),
        anew=_anew(before, made) if before else None,
    )


def _anew(before: AdapterStatus, made: str | None) -> str | None:
    """What an operator before this one did not note says nothing."""
    if made is None or before.registered_at in (None, made):
        return before.anew
    return names.mark(made)
