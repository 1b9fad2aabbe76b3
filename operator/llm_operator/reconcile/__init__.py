"""key → the world as its resource says.
Each reconcile reads, plans, writes; it may stop and be repeated anywhere."""

from llm_operator.observe import Outside
from llm_operator.reconcile import apikey, claim, keyfile, llmdeployment, verdict
from llm_operator.reconcile.result import Done, Pace, Retry
from llm_operator.state import Key

__all__ = ["QUICK", "Done", "Outside", "Pace", "Retry", "reconcile"]
QUICK = ("ApiKey", keyfile.KIND)
"""Kinds of work that ask nobody but the API server, and that a revocation waits for."""


async def reconcile(key: Key, outside: Outside, pace: Pace) -> Done:
    """Bring one custom resource and what belongs to it to the wanted state.
    An exception means: again, later."""
    if holder := await claim.elsewhere(outside, key):
        return await claim.keep_off(outside, key, holder, pace)
    if key.kind == "ApiKey":
        return await apikey.reconcile(key, outside, pace)
    if key.kind == keyfile.KIND:
        return await keyfile.reconcile(key, outside)
    if key.kind == "SecretCheck":
        return await llmdeployment.check_secrets(key, outside, pace)
    if key.kind == verdict.KIND:
        return await verdict.reconcile(key, outside)
    return await llmdeployment.reconcile(key, outside, pace)
