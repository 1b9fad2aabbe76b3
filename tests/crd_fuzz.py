"""Specifications as wild as the CRDs allow, made from their schemas:
extremes, long lists, every pattern.

What CEL rules ask for beside the schema is done here by hand; a rule that is not known here fails,
so that a new one is taught to the fuzz.
"""

from __future__ import annotations

import random
import re
import re._constants as constants  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Callable
from typing import Any

from llm_operator import crds
from llm_operator.crds.common import quantity_value

Json = dict[str, Any]
COMMIT = "0123456789" * 4
URIS = (
    f"hf://org/name@{COMMIT}", f"hf://{'o' * 400}/{'n' * 500}@{COMMIT}", "pvc://weights", "pvc://w/" + "ü" * 900,
    "file:///m", "s3://bucket/a/b/", "gs://b/" + "x" * 1000, "abfss://c@a.dfs.core.windows.net/%20/\u202e", "s3://b/a//",
)  # fmt: skip
IMAGES = (
    "llm-runtime",
    "localhost:5000/a/b:1@sha256:" + "0a" * 32,
    "r.example.com/" + "a" * 300 + ":1",
)
SIZES = (
    "1Ki",
    1024,
    "0.5Gi",
    "1e9",
    "1E9",
    "+2048.000000000000000000000001",
    "999999999",
    ".5Mi",
    "1073741824",
    "4096",
)
LETTERS = "aZ09-_. \t\n\"'\\{}$%é汉🙂\u202e\x7f"


def schema(kind: str) -> Json:
    """Of the whole resource."""
    crd = next(
        each for each in crds.definitions().values() if each["spec"]["names"]["kind"] == kind
    )
    found: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def specification(kind: str, seed: int) -> Json:
    """The specification of a seed: the schema and the rules take it."""
    chance = random.Random(seed)
    found: Json = Wild(chance, present=chance.choice((0.1, 0.3, 0.9))).value(
        schema(kind)["properties"]["spec"], "spec"
    )
    return found


class Wild:
    """Values of a schema. `present`: how likely a field is that need not be there."""

    def __init__(self, chance: random.Random, present: float) -> None:
        self._chance = chance
        self._present = present

    def value(self, schema: Json, path: str) -> Any:
        rules = [each["rule"] for each in schema.get("x-kubernetes-validations", ())]
        for known, make in _MADE.items():
            if any(known in rule for rule in rules):
                return make(self._chance)
        found = self._plain(schema, path, rules)
        for rule in rules:
            edit = next((edit for known, edit in _EDITS.items() if known in rule), None)
            assert edit is not None, f"{path}: the fuzz does not know the rule {rule}"
            found = edit(found)
        return found

    def _plain(self, schema: Json, path: str, rules: list[str]) -> Any:
        chance = self._chance
        if "enum" in schema:
            return chance.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return (
                self._text(schema) if chance.random() < 0.7 else chance.choice((1, 7, 2**31, 2**62))
            )
        match schema["type"]:
            case "object" if "properties" in schema:
                return self._object(schema, path, rules)
            case "object":
                keys = {self._key() for _ in range(self._count(0, schema["maxProperties"]))}
                return {
                    key: self.value(schema["additionalProperties"], f"{path}.*")
                    for key in sorted(keys)
                }
            case "array":
                return self._list(schema, path)
            case "boolean":
                return chance.random() < 0.5
            case "integer":
                low = schema["minimum"]
                high = schema["maximum"]
                return chance.choice((low, high, chance.randint(low, high)))
            case "number":
                low = schema["minimum"]
                high = schema["maximum"]
                return chance.choice((low, high, chance.uniform(low, high)))
        return self._text(schema)

    def _object(self, schema: Json, path: str, rules: list[str]) -> Json:
        fields = schema["properties"]
        group = _group(rules)
        one = self._chance.choice(group) if group else None
        return {
            name: self.value(field, f"{path}.{name}")
            for name, field in fields.items()
            if name == one
            or name in schema.get("required", ())
            or (name not in group and self._chance.random() < self._present)
        }

    def _list(self, schema: Json, path: str) -> list[Any]:
        count = self._count(schema.get("minItems", 0), schema["maxItems"])
        found = [self.value(schema["items"], f"{path}[]") for _ in range(count)]
        keys = schema.get("x-kubernetes-list-map-keys")
        if keys or schema.get("x-kubernetes-list-type") == "set":
            found = list(
                {
                    repr([each[key] for key in keys] if keys else each): each for each in found
                }.values()
            )
        return found

    def _count(self, low: int, high: int) -> int:
        chance = self._chance
        most = min(high, 6) if chance.random() < 0.95 else min(high, 64)
        return chance.randint(low, max(low, most))

    def _text(self, schema: Json) -> str:
        chance = self._chance
        most = schema.get("maxLength", 64)
        if "pattern" in schema:
            for _ in range(200):
                text = _matching(parser.parse(schema["pattern"]), chance)
                if len(text) <= most and _exists(text, schema):
                    return text
            raise AssertionError(f"no text for {schema}")
        size = chance.choice((schema.get("minLength", 0), min(most, 5), most))
        return "".join(chance.choice(LETTERS) for _ in range(size))

    def _key(self) -> str:
        prefix = self._chance.choice(("", "", "example.com/", f"{'a' * 60}.example/"))
        return prefix + self._chance.choice("abcXYZ019") + "k" * self._chance.choice((0, 3, 62))


def _exists(text: str, schema: Json) -> bool:
    """Whether a moment is one: a pattern knows no February."""
    return schema.get("format") != "date-time" or text[8:10] < "29"


def _group(rules: list[str]) -> list[str]:
    """The fields of which exactly one is to be there, or at most one where that is asked."""
    for rule in rules:
        if rule.startswith("has(") or rule.startswith("[has(") or "has(self.value) &&" in rule:
            return [part.partition(")")[0] for part in rule.split("has(self.")[1:]]
    return []


def _matching(parsed: Any, chance: random.Random) -> str:
    """A text that the parsed pattern matches."""
    return "".join(_part(kind, argument, chance) for kind, argument in parsed)


def _part(kind: Any, argument: Any, chance: random.Random) -> str:
    if kind is constants.AT:
        return ""
    if kind is constants.LITERAL:
        return chr(argument)
    if kind is constants.IN:
        ranges = [value if what is constants.RANGE else (value, value) for what, value in argument]
        return chr(chance.randint(*chance.choice(ranges)))
    if kind is constants.BRANCH:
        return _matching(chance.choice(argument[1]), chance)
    if kind is constants.SUBPATTERN:
        return _matching(argument[3], chance)
    assert kind is constants.MAX_REPEAT, f"the fuzz does not know {kind}"
    low, high, inner = argument
    count = chance.choice((low, min(high, low + 2), min(high, low + 20), min(high, 62)))
    return "".join(_matching(inner, chance) for _ in range(max(low, count)))


def _sorted_steps(steps: list[Json]) -> list[Json]:
    return sorted(
        {step["weight"]: step for step in steps}.values(), key=lambda step: step["weight"]
    )


def _with_default(found: Json, field: str, among: str, otherwise: str | None) -> Json:
    names = [each["name"] for each in found.get(among) or ()]
    if found.get(field) in (*names, otherwise, None):
        return found
    return (
        {**found, field: names[0]}
        if names
        else {key: value for key, value in found.items() if key != field}
    )


def _ordered(found: Json) -> Json:
    low, high = sorted((found.get("minReplicas", 1), found["maxReplicas"]))
    return {**found, "minReplicas": low, "maxReplicas": high}


def _pinned(found: Json) -> Json:
    return {**found, "updatePolicy": "Auto"} if "version" in found else found


def _named_resources(found: Json) -> Json:
    known = ("cpu", "memory", "ephemeral-storage", "hugepages-2Mi")
    return {name if "/" in name else known[len(name) % 4]: amount for name, amount in found.items()}


def _whole_devices(found: Json) -> Json:
    devices = {name for name in found if name.startswith("hugepages-") or "/" in name}
    return {
        name: amount if isinstance(amount, int) or name not in devices else "3"
        for name, amount in found.items()
    }


def _fitting(found: Json) -> Json:
    limits = found.get("limits", {})
    requests = found.get("requests")
    fit = {name: amount for name, amount in limits.items() if name in (requests or {})}
    return found if requests is None else {**found, "requests": fit}


def _scorer(found: Json) -> Json:
    """What the type asks for, and nothing of another's."""
    needs: dict[str, Json] = {
        "Regex": {"pattern": None}, "Refusal": {"pattern": None}, "JsonSchema": {"jsonSchema": None},
        "Length": {"minCharacters": None, "maxCharacters": 10}, "Judge": {"judge": {"deployment": "judge"}},
    }  # fmt: skip
    own = needs.get(found["type"], {})
    fixed = {name: value for name, value in own.items() if value is not None}
    return {
        **fixed,
        **{name: value for name, value in found.items() if name == "type" or name in own},
    }


def _shadow_where_it_can_be(found: Json) -> Json:
    able = found.get("strategy", "Auto") in ("Auto", "BlueGreen", "Canary")
    return found if able else {name: value for name, value in found.items() if name != "shadow"}


def _agreement_where_there_are_copies(found: Json) -> Json:
    if found.get("shadow", {"percent": 0}).get("percent", 100) > 0 or "gates" not in found:
        return found
    return {**found, "gates": [gate for gate in found["gates"] if "shadowAgreement" not in gate]}


def _named_model(found: Json) -> Json:
    return {"model": "judge", **found}


def _kept(found: Any) -> Any:
    return found


_MADE: dict[str, Callable[[random.Random], Any]] = {
    "^(hf|pvc|file|s3|gs|abfss)://": lambda chance: chance.choice(URIS),
    "@sha256": lambda chance: chance.choice(IMAGES),
    "quantity(string(self))": lambda chance: chance.choice(SIZES),
    "self != 'latest'": lambda chance: chance.choice(("champion", "é" * 256, "a b/c?d#e&f=%", "-")),
}


def _percent(metric: Json) -> Json:
    most = 100 if metric["type"] == "CacheUsage" else metric["target"]
    return {**metric, "target": min(metric["target"], most)}


_EDITS: dict[str, Callable[[Any], Any]] = {
    "has(self.matchLabels) || ": _kept,
    "has(": _kept,
    "self.type == ": _scorer,
    "!has(self.url)": _named_model,
    "self.strategy in ['Auto'": _shadow_where_it_can_be,
    "gate.shadowAgreement": _agreement_where_there_are_copies,
    "self.updatePolicy": _pinned,
    "type(self) != int": lambda value: value if value != "0" else "1",
    "!self.startsWith('/')": lambda text: re.sub(r"\.+", ".", text.lstrip("/")),
    "isSorted()": _sorted_steps,
    "minReplicas <=": _ordered,
    "self.type != 'CacheUsage'": _percent,
    "k.matches(": _kept,
    "!k.startsWith(": _kept,
    "self.name in [": _kept,
    "k in ['cpu'": _named_resources,
    "isLessThan(quantity('0'))": lambda found: {
        name: str(amount).lstrip("-") for name, amount in found.items()
    },
    "isInteger()": _whole_devices,
    "self.requests.all(": _fitting,
    "!self.name.matches(": _kept,
    "self.defaultTier": lambda found: _with_default(found, "defaultTier", "tiers", "standard"),
    "self.defaultAdapter": lambda found: _with_default(found, "defaultAdapter", "adapters", None),
}
# The last two rules have `has(` in them, too: the longer word decides.
_EDITS = dict(sorted(_EDITS.items(), key=lambda item: item[0] == "has("))

assert all(quantity_value(str(size)) for size in SIZES)
