"""Whether applying an object would change it: told from the object as it was seen.

A server-side apply changes nothing when the live object has every value that would be applied, and
the applier owns these fields and no other (metadata.managedFields). The format is FieldsV1 of
https://kubernetes.io/docs/reference/using-api/server-side-apply/. Where this can't tell, it says no:
a needless apply is harmless, and one that is left out is not.

An object that is not there yet is created, because an apply would take over what somebody else has
made under its name a moment before. Its creator then owns the defaults as well, so that its fields
do not say what was written: an annotation has a digest of that. Before such an object is applied to
for the first time, what was created is declared to be applied, as client-go's csaupgrade does. Else
a field that is not wanted any more would stay.
"""

import hashlib
import json
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from llm_operator.crds import GROUP
from llm_operator.ports.cluster import MANAGER
from llm_operator.state import Manifest

IDENTITY = frozenset({"apiVersion", "kind"})
NAMED = frozenset({"name", "namespace"})
QUANTITIES = frozenset({"limits", "requests", "averageValue", "sizeLimit"})
"""Fields below which the API server writes an amount its own way: 1000m as 1."""
CREATED_ANNOTATION = f"{GROUP}/created-from"
Fields = dict[str, Any]


def digest(manifest: Manifest) -> str:
    """What tells two manifests apart."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:32]


def to_create(manifest: Manifest) -> Manifest:
    """The manifest as it is created, so that it is known again."""
    meta = manifest["metadata"]
    annotations = {**(meta.get("annotations") or {}), CREATED_ANNOTATION: digest(manifest)}
    return {**manifest, "metadata": {**meta, "annotations": annotations}}


def as_applied(live: Manifest) -> list[Manifest] | None:
    """metadata.managedFields in which what we have created is what we have applied; None where it
    is so already."""
    entries = live["metadata"].get("managedFields") or []
    if _entry(live, "Apply") is not None or (ours := _entry(live, "Update")) is None:
        return None
    return [{**each, "operation": "Apply"} if each is ours else each for each in entries]


def needless(manifest: Manifest, live: Manifest) -> bool:
    """Whether the API server would leave `live` as it is, were `manifest` applied to it."""
    if as_applied(live) is not None:
        created = (live["metadata"].get("annotations") or {}).get(CREATED_ANNOTATION)
        return created == digest(manifest) and _covers(manifest, live)
    ours = _ours(manifest, live)
    if ours is None:
        return False
    wanted = {name: value for name, value in manifest.items() if name not in IDENTITY}
    meta = {name: value for name, value in manifest["metadata"].items() if name not in NAMED}
    return _within(ours, {**wanted, "metadata": meta}, live)


def _entry(live: Manifest, operation: str) -> Manifest | None:
    for entry in live["metadata"].get("managedFields") or ():
        whose = (entry["manager"], entry["operation"], entry.get("subresource"))
        if whose == (MANAGER, operation, None):
            found: Manifest = entry
            return found
    return None


def _ours(manifest: Manifest, live: Manifest) -> Fields | None:
    entry = _entry(live, "Apply")
    if entry is None or entry["apiVersion"] != manifest["apiVersion"]:
        return None
    known: Fields = entry["fieldsV1"]
    return known


def _covers(wanted: Any, live: Any, quantity: bool = False) -> bool:
    """Whether `live` has every value of `wanted`; lists have no item more."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(
            _covers(each, live.get(name), quantity or name in QUANTITIES)
            for name, each in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) == len(live) and all(map(_covers, wanted, live))
    return _equal(wanted, live, quantity)


def _within(fields: Fields, wanted: Any, live: Any, quantity: bool = False) -> bool:
    below = {key: each for key, each in fields.items() if key != "."}
    if not below:
        return _equal(wanted, live, quantity)
    if isinstance(wanted, dict) and isinstance(live, dict):
        wanted = {name: each for name, each in wanted.items() if each is not None}
        return below.keys() == {f"f:{name}" for name in wanted} and all(
            _within(below[f"f:{name}"], each, live.get(name), quantity or name in QUANTITIES)
            for name, each in wanted.items()
        )
    if isinstance(wanted, list) and isinstance(live, list):
        return _items_within(below, wanted, live)
    return False


def _items_within(fields: Fields, wanted: list[Any], live: list[Any]) -> bool:
    """Items that are known by some of their own fields (`k:`) or by their value (`v:`), in order."""
    place = -1
    if len(fields) != len(wanted):
        return False
    for item in wanted:
        found = next((key for key in fields if _is(item, key)), None)
        at = next((n for n, each in enumerate(live) if found and _is(each, found)), -1)
        if found is None or at <= place:
            return False
        place = at
        if found.startswith("k:") and not _within(fields[found], item, live[at]):
            return False
    return True


def _is(item: Any, key: str) -> bool:
    kind, _, text = key.partition(":")
    named = json.loads(text)
    if kind == "k" and isinstance(item, dict):
        # A key's field that is not written has its default.
        return all(item.get(name, value) == value for name, value in named.items())
    return bool(kind == "v" and item == named)


def _equal(wanted: Any, live: Any, quantity: bool = False) -> bool:
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(
            _equal(wanted.get(name), live.get(name), quantity or name in QUANTITIES)
            for name in wanted.keys() | live.keys()
        )
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) == len(live) and all(map(_equal, wanted, live))
    if wanted == live or (not wanted and not live):
        return True  # The API server leaves out what is empty.
    if wanted is None or live is None:
        return False
    try:
        return quantity and parse_quantity(wanted) == parse_quantity(live)
    except ValueError:
        return False
