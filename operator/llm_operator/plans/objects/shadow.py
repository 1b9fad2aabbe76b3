"""The file that has stable's pods copy requests to a candidate."""

from llm_operator.plans import names
from llm_operator.plans.rollout import Decision
from llm_operator.state import Manifest, Observed
from llm_runtime import contract


def file(observed: Observed, decision: Decision) -> str:
    """The file's text; empty while nothing is to be copied, or while the candidate's Service has no
    address."""
    spec = observed.spec.rollout.shadow
    stable = decision.stable
    candidate = decision.candidate
    url = _url(observed)
    if not (decision.copies and observed.shadow_token and url and spec and stable and candidate):
        return ""
    return contract.ShadowFile(
        stable=names.child(observed.meta, stable.revision),
        candidate=names.child(observed.meta, candidate.revision),
        url=url,
        token=observed.shadow_token,
        percent=spec.percent,
        max_in_flight=spec.max_in_flight,
    ).model_dump_json(by_alias=True)


def _url(observed: Observed) -> str:
    """The candidate's Service, by its address: a copy needs no DNS."""
    wanted = ("Service", names.candidate_service(observed.meta))
    found = (
        each for each in observed.children if (each["kind"], each["metadata"]["name"]) == wanted
    )
    service: Manifest = next(found, {})
    address = (service.get("spec") or {}).get("clusterIP") or "None"
    host = f"[{address}]" if ":" in address else address
    return "" if address == "None" else f"http://{host}:{observed.spec.service.port}"
