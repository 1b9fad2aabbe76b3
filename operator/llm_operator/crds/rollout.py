"""How a new revision reaches the clients."""

from typing import Annotated, Literal

from pydantic import Field

from llm_operator.crds.schema import Section


class RolloutSpec(Section):
    """How a new version or a changed specification reaches the clients."""

    strategy: Literal["BlueGreen", "Recreate"] = "BlueGreen"
    """BlueGreen: all new pods beside the old, then switch. Recreate: the old go first, where both do not fit."""
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = 120
    """How long running streams may go on in a pod that is told to stop."""
    progress_deadline_seconds: Annotated[int, Field(ge=10, le=86_400)] = 1800
    """A new revision that is not ready in this time has failed; the old one keeps serving."""
    revision_history_limit: Annotated[int, Field(ge=0, le=20)] = 5
    """How many old revisions are kept, without pods, to go back to."""
