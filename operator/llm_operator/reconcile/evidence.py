"""Gathers the evidence of gates from the candidate's pods, Prometheus and Jobs. The verdicts are
made of it in plans/evidence/gates.py."""

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import chain

from llm_operator import plans
from llm_operator.crds import AdapterSpec, CandidateStatus, GateVerdict
from llm_operator.crds.rollout import GateSpec, PrometheusQuery
from llm_operator.memory import GONE, Written
from llm_operator.observe import Outside
from llm_operator.plans import names
from llm_operator.plans.evidence.copies import Copies
from llm_operator.plans.evidence.watched import Watched
from llm_operator.plans.objects import adapter_versions, keys
from llm_operator.plans.rollout import stamp, strategy_named, tries_on
from llm_operator.ports.cluster import ApiError, Conflict
from llm_operator.reconcile import evaluation, loadprobe, smoke
from llm_operator.reconcile.apikey import new_key
from llm_operator.reconcile.put import update
from llm_operator.state import (
    NO_POD,
    AdapterSpread,
    AdapterVersions,
    DigestedKey,
    Evidence,
    Manifest,
    Measured,
    Meta,
    Observed,
    SmokeOutcome,
)
from llm_runtime.contract import hash_key, key_id_of

QUERY_AGE = timedelta(seconds=10)
"""How old an answer of Prometheus may be: a query may be expensive, and each look would ask it again."""


async def gather(outside: Outside, observed: Observed) -> Observed:
    """What the candidate's gates are judged by, and the operator's own key where one is needed."""
    spec = observed.spec.rollout
    candidate = observed.status.candidate
    outside.memory.meet(observed.meta.key, observed.meta.uid)
    missing = ""
    try:
        key, digested = await _operator_key(outside, observed)
    except ApiError as error:
        # The gate waits, the roll-out's deadline does not.
        key = None
        digested = None
        missing = f"the operator's own key can't be made: {error}"
    observed = replace(observed, operator_key=digested)
    over = candidate is None or (candidate.outcome is not None and not tries_on(observed.status))
    # A replaced candidate may still answer clients, but its gates are not judged any more.
    over = over or plans.replaced(observed, outside.clock())
    if over or not (spec.gates or spec.shadows):
        candidate = None
    adapters = [each for each in adapter_versions.candidates(observed) if each.judged]
    subjects = [evaluation.of_adapter(observed, each) for each in adapters]
    subjects += [evaluation.of_revision(observed, candidate)] if candidate else []
    evaluations = await evaluation.outcomes(outside, observed, subjects, key, missing)
    observed = replace(
        observed,
        adapter_evidence=await _adapters(outside, observed, adapters, evaluations, key, missing),
    )
    if candidate is None:
        outside.memory.end_rollout(observed.meta.uid)
        return observed
    if spec.shadows:
        observed = replace(
            observed, shadow_token=_shadow_token(outside, observed.meta.uid, candidate.revision)
        )
    children = observed.revisions.get(candidate.revision)
    pods = list(children.ready_pods) if children else []
    asked = (
        [gate.prometheus_query for gate in spec.gates or () if gate.prometheus_query is not None]
        if pods
        else []
    )
    probes = [
        loadprobe.of_revision(outside, observed, candidate, each, key, missing)
        for each in spec.load_probes
    ]
    revision = smoke.Candidate(
        candidate.revision, observed.meta.name, {candidate.revision: pods} if pods else {}
    )
    outcomes, answers, probed = await asyncio.gather(
        _smokes(outside, observed, revision, spec.smoke_maps, key, missing),
        asyncio.gather(*(_query(outside, observed, candidate, each) for each in asked)),
        asyncio.gather(*probes),
    )
    return replace(
        observed,
        evidence=Evidence(
            revision=candidate.revision,
            traffic=_traffic(outside, observed, candidate),
            smoke=outcomes,
            probes=dict(zip(spec.load_probes, probed, strict=True)),
            queries=dict(zip(asked, answers, strict=True)),
            evaluations=evaluations.get(candidate.revision, {}),
            shadow=_copies(outside, observed, candidate),
        ),
    )


def _pods(observed: Observed, revision: str) -> Iterable[Manifest]:
    children = observed.revisions.get(revision)
    return children.pods if children else ()


def _traffic(
    outside: Outside, observed: Observed, candidate: CandidateStatus
) -> dict[str, GateVerdict]:
    """What the gates say of the traffic up to now."""
    uid = observed.meta.uid
    strategy = strategy_named(candidate.strategy)
    switched = strategy is not None and strategy.switches
    watched = outside.memory.watched.get(uid)
    if watched is None or (watched.revision, watched.switched) != (candidate.revision, switched):
        watched = Watched(candidate.revision, switched)
        outside.memory.watched[uid] = watched
    stable = observed.status.stable.revision if observed.status.stable else ""
    return watched.look(
        observed.spec.rollout.gates or (),
        observed.figures,
        own=_names(observed, candidate.revision),
        stable=_names(observed, stable),
        traffic=candidate.traffic_since is not None,
        at=stamp(outside.clock()),
    )


def _copies(
    outside: Outside, observed: Observed, candidate: CandidateStatus
) -> dict[str, GateVerdict]:
    """What the gates say of the copies that stable's pods have sent up to now."""
    stable = observed.status.stable.revision if observed.status.stable else ""
    return _looked_at(
        outside,
        observed,
        candidate.revision,
        observed.spec.rollout.gates or (),
        names.child(observed.meta, candidate.revision),
        _names(observed, stable),
    )


def _looked_at(
    outside: Outside,
    observed: Observed,
    candidate: str,
    specs: Iterable[GateSpec],
    told_as: str,
    pods: Iterable[str],
) -> dict[str, GateVerdict]:
    """What the gates say of the copies that `pods` sent to a candidate.

    `told_as`: the name under which the pods report it.
    """
    key = observed.meta.uid, candidate
    known = outside.memory.copies.get(key)
    if known is None:
        known = outside.memory.copies[key] = Copies()
    figures = {pod: observed.figures[pod].shadowed for pod in pods if pod in observed.figures}
    said = {pod: copies[told_as] for pod, copies in figures.items() if told_as in copies}
    return known.look(specs, said, at=stamp(outside.clock()))


def _shadow_token(outside: Outside, uid: str, candidate: str) -> str:
    """What copies for this candidate carry.
    No client knows it, and an operator that restarts makes another."""
    known, token = outside.memory.shadow_tokens.get(uid, ("", ""))
    if known != candidate:
        token = secrets.token_urlsafe(32)
        outside.memory.shadow_tokens[uid] = candidate, token
    return token


def _names(observed: Observed, revision: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in _pods(observed, revision)]


async def _query(
    outside: Outside, observed: Observed, candidate: CandidateStatus, gate: PrometheusQuery
) -> Measured:
    if outside.prometheus is None:
        return Measured(waiting="no Prometheus is configured")
    stable = observed.status.stable.revision if observed.status.stable else ""
    query = gate.query.replace("{candidate}", candidate.revision).replace("{stable}", stable)
    known = (observed.meta.uid, gate.server or "", query)
    now = outside.clock()
    at, before = outside.memory.measured.get(known, (None, None))
    if at is not None and before is not None and now - at < QUERY_AGE:
        return before
    found = await outside.prometheus.query(gate.server or "", query, observed.meta.namespace)
    outside.memory.measured[known] = (now, found)
    return found


async def _adapters(
    outside: Outside,
    observed: Observed,
    versions: Iterable[AdapterVersions],
    evaluations: evaluation.Outcomes,
    key: str | None,
    missing: str,
) -> dict[str, Evidence]:
    """What versions of adapters that are behind their gates are judged by."""
    specs = {each.name: each for each in observed.spec.adapters or ()}
    judged = {
        names.loaded_as(each.judged): (each, specs[each.judged.name], each.spread)
        for each in versions
        if each.judged is not None and each.spread is not None
    }
    outside.memory.end_adapters(observed.meta.uid, judged.keys())

    async def evidence(
        name: str, each: AdapterVersions, spec: AdapterSpec, spread: AdapterSpread
    ) -> Evidence:
        candidate = smoke.Candidate(name, f"{observed.meta.name}:{name}", spread.loaded)
        probes = [
            loadprobe.of_adapter(outside, observed, each, probe, key, missing)
            for probe in spec.load_probes
        ]
        outcomes, probed = await asyncio.gather(
            _smokes(outside, observed, candidate, spec.smoke_maps, key, missing),
            asyncio.gather(*probes),
        )
        copied = dict[str, GateVerdict]()
        if spec.shadows and each.serves is not None:
            pods = [pod["metadata"]["name"] for pod in chain(*spread.loaded.values())]
            copied = _looked_at(outside, observed, name, spec.checks, name, pods)
        return Evidence(
            smoke=outcomes,
            probes=dict(zip(spec.load_probes, probed, strict=True)),
            evaluations=evaluations.get(name, {}),
            shadow=copied,
        )

    found = await asyncio.gather(*(evidence(name, *about) for name, about in judged.items()))
    return dict(zip(judged, found, strict=True))


async def _smokes(
    outside: Outside,
    observed: Observed,
    candidate: smoke.Candidate,
    maps: tuple[str, ...],
    key: str | None,
    missing: str,
) -> dict[str, SmokeOutcome]:
    """What has become of a candidate's prompts, by ConfigMap."""
    found = await asyncio.gather(
        *(_smoke(outside, observed, candidate, each, key, missing) for each in maps)
    )
    return dict(zip(maps, found, strict=True))


async def _smoke(
    outside: Outside,
    observed: Observed,
    candidate: smoke.Candidate,
    name: str,
    key: str | None,
    missing: str,
) -> SmokeOutcome:
    if not candidate.pods:
        return SmokeOutcome(waiting=NO_POD)
    if key is None:
        secret = names.operator_key_secret(observed.meta)
        return SmokeOutcome(
            waiting=missing or f"Secret {secret} was not made by the operator: rename or delete it"
        )
    return await smoke.outcome(outside, observed, candidate, name, key)


async def _operator_key(
    outside: Outside, observed: Observed
) -> tuple[str | None, DigestedKey | None]:
    """The plain key (empty: none is needed;
    None: its name is somebody else's) and its record for the key file."""
    meta = observed.meta
    name = names.operator_key_secret(meta)
    rollout = observed.spec.rollout
    asks = rollout.asks and observed.spec.access.authentication == "Required"
    # Without the operator's key, clients could not be told from the operator, and candidates of
    # adapters and load probes are not for clients.
    known = any(each.gated for each in observed.spec.adapters or ()) or rollout.load_probes
    if not asks and not known:
        await _forget_key(outside, meta, name)
        return "", None
    secret = await outside.cluster.get("Secret", meta.namespace, name)
    if secret is None:
        # Create-only: of two writers, or of a crash and its repetition, one key wins.
        try:
            secret = await outside.cluster.create(keys.operator_secret(meta, new_key()))
        except Conflict:
            secret = await outside.cluster.get("Secret", meta.namespace, name) or {}
    if not names.ours(secret, meta):
        return None, None
    key = keys.decode(secret, keys.API_KEY_FIELD) or ""
    if key and not names.owned(secret, meta):
        secret = await update(outside.cluster, meta, keys.operator_secret(meta, key), secret)
    key_id = key_id_of(key)
    if key_id is None:
        # Emptied by hand: it can't be told from a deleted one.
        await outside.cluster.delete("Secret", meta.namespace, name, secret["metadata"]["uid"])
        return "", None
    outside.memory.secrets[meta.namespace, name] = Written(secret["metadata"]["resourceVersion"])
    return key, keys.operator_key(meta, key_id, hash_key(key, meta.uid))


async def _forget_key(outside: Outside, meta: Meta, name: str) -> None:
    """Delete the key that is not needed any more.
    One look per process: the one before it may have made the key."""
    if outside.memory.secrets.get((meta.namespace, name)) == GONE:
        return
    live = await outside.cluster.get("Secret", meta.namespace, name)
    if live is not None and names.owned(live, meta):
        await outside.cluster.delete("Secret", meta.namespace, name, live["metadata"]["uid"])
    outside.memory.secrets[meta.namespace, name] = GONE
