"""Tells the registry how roll-outs ended. Its work has its own queue key, so that it delays no
roll-out."""

import logging
import random

from llm_operator.crds import LLMDeploymentStatus
from llm_operator.observe import Outside, connection_for
from llm_operator.plans.status import verdicts
from llm_operator.plans.status.verdicts import Ended, Ledger
from llm_operator.ports.registry import RegistryDenied, RegistryFault
from llm_operator.reconcile.result import Done, Retry
from llm_operator.reconcile.status import stamp, tell
from llm_operator.state import Connection, Key, Observed, Occurrence

log = logging.getLogger(__name__)
KIND = "Verdict"
CHECK_SECONDS = 30.0
"""After a start, requests to the registry are spread over this many seconds."""


def due(
    outside: Outside, observed: Observed, status: LLMDeploymentStatus
) -> tuple[tuple[Key, float], ...]:
    """The key under which this status's verdict is written to the registry,
    and in how many seconds; none without news."""
    meta = observed.meta
    mlflow = observed.spec.model.mlflow
    settings = outside.connections.current().get(mlflow.connection) if mlflow else None
    if (
        mlflow is None
        or observed.connection is None
        or settings is None
        or not settings.write_verdicts
    ):
        outside.memory.ledgers.pop(meta.key, None)
        return ()
    ledger = outside.memory.ledgers.get(meta.key)
    if ledger is None or (ledger.meta.uid, ledger.connection) != (meta.uid, mlflow.connection):
        ledger = outside.memory.ledgers[meta.key] = Ledger(meta, mlflow.connection)
        ledger.note(verdicts.ended(observed, observed.status))
    ledger.note(verdicts.ended(observed, status))
    if not ledger.due():
        return ()
    # Verdicts from before this process were most likely written. A start must not ask about all of
    # them in one go.
    seconds = random.uniform(0, CHECK_SECONDS) if ledger.inherited() else 0.0
    return ((Key(KIND, meta.namespace, meta.name), seconds),)


def deleted(outside: Outside, owner: Key) -> tuple[tuple[Key, float], ...]:
    """The key under which the tags of a deployment that is gone are taken away;
    none where it has none."""
    ledger = outside.memory.ledgers.get(owner)
    if ledger is None:
        return ()
    ledger.deleted = True
    return ((Key(KIND, owner.namespace, owner.name), 0.0),)


async def reconcile(key: Key, outside: Outside) -> Done:
    """Write the verdicts that are due. Raises Retry while the registry does not answer."""
    owner = Key("LLMDeployment", key.namespace, key.name)
    ledger = outside.memory.ledgers.get(owner)
    if ledger is None:
        return Done(gone=True)
    if ledger.deleted:
        return await _withdraw(outside, owner, ledger)
    refusal = ledger.refusal
    for each in ledger.due():
        try:
            connection = await connection_for(outside, key.namespace, ledger.connection)
            await _record(outside, connection, ledger, each)
            ledger.refusal = ""
        except RegistryDenied as fault:
            ledger.refusal = _refused(ledger, each, fault)
        except RegistryFault as fault:
            if fault.about_server or not fault.terminal:
                raise Retry(f"the verdict on {_name(each)} is not written yet: {fault}") from fault
            log.warning("the verdict on %s is not written: %s", _name(each), fault)
        ledger.told.add(each)
        ledger.fresh = False
    if ledger.refusal == refusal:
        return Done(gone=True)
    if ledger.refusal:
        occurrence = Occurrence("Warning", "VerdictRefused", ledger.refusal)
        await tell(outside.cluster, ledger.meta, (occurrence,), stamp(outside.clock()))
    return Done(wake=(owner,), gone=True)


async def _record(outside: Outside, connection: Connection, ledger: Ledger, ended: Ended) -> None:
    model = ended.verdict.model
    version = ended.verdict.version
    key = verdicts.tag(ledger.meta)
    have = await outside.registry.tags(connection, model, version)
    wanted = verdicts.value(ended, ledger.meta, have)
    if have.get(key) != wanted:
        await outside.registry.tag(connection, model, version, key, wanted)
        log.info(
            "%s: wrote verdict %s to connection %s",
            _name(ended),
            ended.verdict.outcome,
            connection.name,
        )
    for former in have.keys() & set(verdicts.former_tags(ledger.meta)):
        await outside.registry.untag(connection, model, version, former)


async def _withdraw(outside: Outside, owner: Key, ledger: Ledger) -> Done:
    """Take away the tags of a deployment that is gone, from every version that has one."""
    *_, former = verdicts.former_tags(ledger.meta)
    try:
        connection = await connection_for(outside, owner.namespace, ledger.connection)
        for key in (verdicts.tag(ledger.meta), former):
            for (model, version), tags in (await outside.registry.tagged(connection, key)).items():
                for ours in tags.keys() & {
                    verdicts.tag(ledger.meta),
                    *verdicts.former_tags(ledger.meta),
                }:
                    await _take_away(outside, connection, model, version, ours)
    except RegistryFault as fault:
        if not fault.terminal:
            raise Retry(
                f"the tags of {owner.namespace}/{owner.name} are not removed yet: {fault}"
            ) from fault
        log.warning(
            "the tags of %s/%s, which is deleted, were not removed: %s",
            owner.namespace,
            owner.name,
            fault,
        )
    if outside.memory.ledgers.get(owner) is ledger:
        del outside.memory.ledgers[owner]
    return Done(gone=True)


async def _take_away(
    outside: Outside, connection: Connection, model: str, version: str, key: str
) -> None:
    """Failing to remove one tag does not stop the others."""
    try:
        await outside.registry.untag(connection, model, version, key)
    except RegistryFault as fault:
        if fault.about_server or not fault.terminal:
            raise
        log.warning("the tag %s of %s version %s was not removed: %s", key, model, version, fault)


def _refused(ledger: Ledger, ended: Ended, fault: RegistryDenied) -> str:
    return (
        f"the verdict {ended.verdict.outcome} on {_name(ended)} is not written: {fault}, give that"
        " user the right to edit the model, or set writeVerdicts: false for connection"
        f" {ledger.connection!r}; the next verdict is tried"
    )


def _name(ended: Ended) -> str:
    return f"{ended.verdict.model} version {ended.verdict.version}"
