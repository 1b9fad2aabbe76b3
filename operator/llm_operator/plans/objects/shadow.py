"""The file that has stable's pods copy requests to a candidate."""

from llm_operator.plans import names
from llm_operator.plans.rollout import Decision
from llm_operator.state import Manifest, Observed
from llm_runtime import contract


def file(observed: Observed, decision: Decision) -> str:
    """Its text; empty while nothing is to be copied, or the candidate's Service has no address yet."""
    spec = observed.spec.rollout.shadow
    stable = decision.stable
    candidate = decision.candidate
    service = next((each for each in observed.children if _is_candidate_s(observed, each)), None)
    if not decision.copies or not observed.shadow_token or service is None or not (spec and stable and candidate):
        return ""
    address = (service.get("spec") or {}).get("clusterIP", "")
    if address in ("", "None"):
        return ""
    host = f"[{address}]" if ":" in address else address
    return contract.ShadowFile(
        stable=names.child(observed.meta, stable.revision),
        candidate=names.child(observed.meta, candidate.revision),
        # Not by name: it needs no DNS, and a copy waits for nothing.
        url=f"http://{host}:{observed.spec.service.port}",
        token=observed.shadow_token,
        percent=spec.percent,
        max_in_flight=spec.max_in_flight,
    ).model_dump_json(by_alias=True)


def _is_candidate_s(observed: Observed, child: Manifest) -> bool:
    return child["kind"] == "Service" and child["metadata"]["name"] == names.candidate_service(observed.meta)
