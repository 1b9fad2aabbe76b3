"""Which version of each adapter answers, and which is held behind the adapter's gates. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from llm_operator.crds import AdapterCandidate, AdapterStatus
from llm_operator.crds.rollout import GateSpec
from llm_operator.plans.evidence import gates
from llm_operator.plans.objects import revision
from llm_operator.state import Evidence, Manifest, Observed, ResolvedAdapter, SmokeOutcome, pod_ready
from llm_runtime import contract


@dataclass(frozen=True)
class Versions:
    """The versions of one adapter of the specification."""

    serves: AdapterStatus | None
    """What clients get. None: no version yet."""
    candidate: AdapterCandidate | None = None
    """What is judged, or was refused."""

    @property
    def judged(self) -> AdapterCandidate | None:
        """What pods are to load beside what serves."""
        return self.candidate if self.candidate and self.candidate.outcome is None else None


@dataclass(frozen=True)
class Spread:
    """In which ready pods a candidate is loaded."""

    loaded: dict[str, list[Manifest]]
    """By revision."""
    behind: str
    """Why not in all; empty where it is."""
    failed: dict[str, str]
    """Reason by pod, of those that can't load it."""

    @property
    def pods(self) -> int:
        return sum(map(len, self.loaded.values()))


def versions(observed: Observed) -> tuple[Versions, ...]:
    """Of each adapter, in the order of the specification, as its gates let them."""
    return tuple(_judged(observed, each) for each in candidates(observed))


def pinned(observed: Observed) -> tuple[AdapterStatus, ...]:
    """The version of each adapter that clients are to get. One that never had any is left out."""
    return tuple(each.serves for each in versions(observed) if each.serves is not None)


def judged(observed: Observed) -> tuple[AdapterCandidate, ...]:
    """What pods are to load for the operator alone."""
    return tuple(each.judged for each in versions(observed) if each.judged is not None)


def candidates(observed: Observed) -> tuple[Versions, ...]:
    """The same before anything is judged: what has to be asked."""
    serving = {each.name: each for each in observed.status.adapters}
    held = {each.name: each for each in observed.status.adapter_candidates}
    return tuple(
        _versions(adapter, serving.get(adapter.spec.name), held.get(adapter.spec.name)) for adapter in observed.adapters
    )


def alias(candidate: AdapterStatus) -> str:
    """The name under which pods have a candidate: another one for whatever else may be loaded."""
    mark = revision.mark(repr(identity(candidate)))
    return f"{candidate.name}{contract.CANDIDATE_MARK}{candidate.version[:40]}.{mark}"


def identity(adapter: AdapterStatus) -> tuple[str, str, str, str | None, str | None]:
    """What tells an adapter's versions apart."""
    return adapter.connection, adapter.model, adapter.version, adapter.sub_path, adapter.anew


def spread(observed: Observed, candidate: AdapterCandidate) -> Spread:
    """Where a candidate is loaded. Only ready pods count, and of them those of the stable revision, if there is one.

    What is wrong with the answers of another revision may be the fault of its model.
    """
    name = alias(candidate)
    loaded = dict[str, list[Manifest]]()
    behind = dict[str, str]()
    failed = dict[str, str]()
    stable = observed.status.stable.revision if observed.status.stable else None
    for each in observed.revisions.values():
        if stable is not None and each.revision != stable:
            continue
        for pod in filter(pod_ready, each.pods):
            named = pod["metadata"]["name"]
            figures = observed.figures.get(named)
            if figures is not None and name in figures.adapters:
                loaded.setdefault(each.revision, []).append(pod)
            elif figures is not None and name in figures.adapter_failures:
                failed[named] = figures.adapter_failures[name]
                behind[named] = f"not loaded in pod {named}: {failed[named]}"
            else:
                behind[named] = f"not loaded in pod {named} yet"
    first = next(iter(failed or behind), None)
    if first is None:
        return Spread(loaded, "" if loaded else "no pod is ready", failed)
    more = f", and in {len(behind) - 1} more" if len(behind) > 1 else ""
    return Spread(loaded, behind[first] + more, failed)


def _versions(adapter: ResolvedAdapter, serving: AdapterStatus | None, held: AdapterCandidate | None) -> Versions:
    if adapter.resolution.fault is not None:
        # What the reference stands for is not known: nothing is promoted, and nothing is forgotten.
        return Versions(serving, held if adapter.spec.gates else None)
    found = _pin(adapter, filter(None, (held, serving)))
    if not adapter.spec.gates or (serving is not None and identity(found) == identity(serving)):
        return Versions(found if serving is None else _as_before(found, serving))
    same = held if held and identity(held) == identity(found) else None
    begun = AdapterCandidate.model_validate(found.model_dump())
    if same is None or _other_gates(adapter, same):
        return Versions(serving, begun)
    return Versions(serving, begun.model_copy(update={"gates": same.gates, "outcome": same.outcome}))


def _as_before(found: AdapterStatus, serving: AdapterStatus) -> AdapterStatus:
    same = identity(found) == identity(serving)
    return found.model_copy(update={"judged": serving.judged}) if same else found


def _other_gates(adapter: ResolvedAdapter, held: AdapterCandidate) -> bool:
    names = {gates.smoke_name(name) for name in adapter.spec.smoke_maps}
    return bool(held.gates) and names != {each.name for each in held.gates}


def _judged(observed: Observed, found: Versions) -> Versions:
    candidate = found.judged
    adapter = next((each for each in observed.adapters if candidate and each.spec.name == candidate.name), None)
    if candidate is None or adapter is None or adapter.resolution.fault is not None:
        return found
    specs = [GateSpec(smoke_prompts=each.smoke_prompts) for each in adapter.spec.gates or ()]
    smoke = {name: _outcome(observed, candidate, name) for name in adapter.spec.smoke_maps}
    verdict = gates.judge(specs, Evidence(smoke=smoke))
    if gates.failed(verdict) is not None:
        return Versions(found.serves, candidate.model_copy(update={"gates": verdict, "outcome": "Failed"}))
    if all(each.state == "Passed" for each in verdict):
        told = {**candidate.model_dump(include=set(AdapterStatus.model_fields)), "judged": gates.summary(verdict)}
        return Versions(AdapterStatus.model_validate(told))
    return Versions(found.serves, candidate.model_copy(update={"gates": verdict}))


def _outcome(observed: Observed, candidate: AdapterCandidate, config_map: str) -> SmokeOutcome:
    """What became of the prompts, with regard to pods that could not be asked."""
    known = observed.adapter_evidence.get(alias(candidate), {}).get(config_map)
    where = spread(observed, candidate)
    behind = where.behind
    if known is not None and where.loaded and (known.failures or known.waiting):
        return known
    if behind or known is None:
        return SmokeOutcome(waiting=behind or "not asked yet", pods=known.pods if known else 0)
    return known


def _pin(adapter: ResolvedAdapter, known: Iterable[AdapterStatus]) -> AdapterStatus:
    """What the reference stands for now."""
    model = adapter.resolution.model
    asked = adapter.spec.mlflow
    assert model is not None
    made = model.registered_at or None
    numbered = (asked.connection, model.name, model.version)
    before = next((each for each in known if (each.connection, each.model, each.version) == numbered), None)
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
    return revision.mark(made)
