"""Records of a dataset: what they ask, in which order,
and the digest that says whether they are the same. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class Unusable(Exception):
    """The dataset, a record or a scorer can't be used as it is; the message is for its author."""


@dataclass(frozen=True)
class Record:
    """One case: what is asked, and what is expected."""

    inputs: Mapping[str, Any]
    expectations: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """A mark of what is asked, the same in every dataset."""
        return hashlib.sha256(canonical(self.inputs).encode()).hexdigest()[:16]

    @cached_property
    def line(self) -> str:
        """The whole record, always written in the same way."""
        return canonical({"inputs": self.inputs, "expectations": self.expectations})

    @property
    def asked(self) -> dict[str, Any]:
        """The body of a request: `messages`, or a `prompt`.
        Raises Unusable for inputs that are neither."""
        inputs = dict(self.inputs)
        if (
            list(inputs) == ["messages"]
            and isinstance(inputs["messages"], list)
            and inputs["messages"]
        ):
            return inputs
        [only] = inputs.values() if len(inputs) == 1 else [None]
        if isinstance(only, str) and only:
            return {"prompt": only}
        names = ", ".join(sorted(inputs)) or "nothing"
        raise Unusable(
            f"record {self.id} has the inputs {names}: write `messages` alone, or one text under"
            " any name"
        )

    def expected(self, name: str, kind: type | tuple[type, ...], scorer: str) -> Any:
        """An expectation that a scorer needs.
        Raises Unusable where it is not there, or something else."""
        found = self.expectations.get(name)
        if not isinstance(found, kind):
            has = ", ".join(sorted(self.expectations)) or "none"
            raise Unusable(
                f"record {self.id} has no usable expectation {name}, which {scorer} needs (it has:"
                f" {has})"
            )
        return found


def canonical(value: Any) -> str:
    """JSON that is the same for equal values: MLflow takes 1 and 1.0 for two."""
    return json.dumps(_normal(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _normal(value: Any) -> Any:
    match value:
        case dict():
            return {str(name): _normal(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_normal(inner) for inner in value]
        case float() if value.is_integer():
            return int(value)
    return value


def ordered(records: Iterable[Record]) -> list[Record]:
    """In an order that depends on nothing but the records, and on their answers not at all.

    It is that of a hash, so its beginning is a random sample, the same one for every candidate.
    """
    return sorted(records, key=lambda record: (record.id, record.line))


def digest(records: Iterable[Record]) -> str:
    """SHA-256 over all records, whatever their order.
    MLflow's own digest is one of name and time."""
    lines = sorted(record.line for record in records)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
