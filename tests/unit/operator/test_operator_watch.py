"""What a watch makes of an event: keys, and a sighting for the mirror."""

from __future__ import annotations

from typing import Any

from llm_operator.hearing import Hearing
from llm_operator.mirror import Mirror
from llm_operator.state import Key
from llm_operator.watch import WATCHED, _Heard, _registry

DEPLOYMENT = Key("LLMDeployment", "team", "bot")
FILE = Key("KeyFile", "team", "bot")


async def told(*events: tuple[str | None, dict[str, str]]) -> list[list[Key]]:
    """The keys that each event of one LLMDeployment adds, by its type and the labels in it."""
    added: list[Key] = []
    heard = _Heard(added.append, Mirror(lambda *_: True))
    registry = _registry(lambda call: call(), heard, Hearing(WATCHED, ()))
    (own,) = (
        each.fn for each in registry._watching.get_all_handlers() if each.id == "LLMDeployment"
    )
    found = []
    for version, (kind, labels) in enumerate(events):
        meta = {"namespace": "team", "name": "bot", "uid": "1", "labels": labels}
        meta["resourceVersion"] = str(version)
        body: Any = {"kind": "LLMDeployment", "metadata": meta}
        await own(event={"type": kind, "object": body})  # type: ignore[misc, call-arg]
        found.append(list(added))
        added.clear()
    return found


async def test_a_deployments_key_file_is_looked_at_when_it_is_first_seen_and_when_its_labels_change() -> (
    None
):
    first, same, relabelled, gone, again = await told(
        (None, {"tier": "gold"}),
        ("MODIFIED", {"tier": "gold"}),
        ("MODIFIED", {}),
        ("DELETED", {}),
        ("ADDED", {}),
    )
    assert first == [DEPLOYMENT, FILE], "keys may have been deleted while nobody watched"
    assert same == [DEPLOYMENT]
    assert relabelled == [DEPLOYMENT, FILE], "a selector may open it no longer"
    assert gone == [DEPLOYMENT]
    assert again == [DEPLOYMENT, FILE]
