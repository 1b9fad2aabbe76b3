"""Writes on an object why a look at it could not be finished, beside what was known before."""

import logging

from llm_operator.observe import Outside, Status, meta_of, status_of
from llm_operator.plans.reasons import Reason
from llm_operator.plans.status import findings
from llm_operator.ports.cluster import ApiError, Refused
from llm_operator.reconcile.status import report, stamp, tell
from llm_operator.state import Fault, Key, Manifest, Occurrence

log = logging.getLogger(__name__)


def passes(error: Exception) -> bool:
    """Whether a retry may help: after silence, a 5xx,
    or somebody else's write in the same moment."""
    return isinstance(error, ApiError) and not isinstance(error, Refused)


def lasts(outside: Outside, key: Key, passing: bool) -> bool:
    """Whether to report a fault. One that may pass by itself is reported when the next look meets
    one again."""
    if not passing or key in outside.memory.unwell:
        return True
    outside.memory.unwell.add(key)
    return False


async def tell_unfinished(
    outside: Outside, resource: Manifest, model: type[Status], error: Exception
) -> None:
    """Tell what ended a look. Where the API server takes no status now, the next look tells it."""
    meta = meta_of(resource)
    if not lasts(outside, meta.key, passes(error)):
        return
    own = (
        ""
        if isinstance(error, ApiError)
        else f"an error of the operator itself: {type(error).__name__}: "
    )
    what = f"{own}{error}"
    fault = Fault(
        Reason.NotObserved,
        f"the operator could not look at everything, and tries again by itself: {what}",
    )
    now = outside.clock()
    before = status_of(model, resource)
    verdicts = findings.unknown(before.conditions, fault, meta.generation, now)
    known = any(each.type == "Ready" and each.reason == fault.reason for each in before.conditions)
    try:
        if not known:
            happened = Occurrence("Warning", fault.reason, fault.message)
            await tell(outside.cluster, meta, (happened,), stamp(now))
        await report(outside, resource, meta, before.model_copy(update={"conditions": verdicts}))
    except ApiError as refusal:
        log.warning(
            "%s %s/%s: its status was not written: %s",
            meta.kind,
            meta.namespace,
            meta.name,
            refusal,
        )
