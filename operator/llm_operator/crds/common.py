"""Building blocks that several resources use: names, sizes, images, conditions. Every string,
list and map has a maximum, for the cost of CEL."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from llm_operator.crds.schema import Section, rules

GROUP = "llm-operator.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Short = Annotated[str, Field(max_length=63)]
Line = Annotated[str, Field(max_length=253)]
Text = Annotated[str, Field(max_length=4096)]


def cut(characters: int) -> BeforeValidator:
    """For texts of a status: what is longer is cut where the status is made, and nowhere before."""
    return BeforeValidator(lambda text: text[:characters] if isinstance(text, str) else text)


# Object names as Kubernetes wants them (RFC 1123 label), told at once and not by a failing child.
ObjectName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
LabelValue = Annotated[
    str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")
]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=32)]
AnnotationMap = Annotated[dict[str, Text], Field(max_length=32)]
QUALIFIED = (
    r"self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",
    "write keys like team or example.com/team: at most 63 letters, digits, -, _ and . behind the slash",
)
NamedLabels = Annotated[LabelMap, Field(json_schema_extra=rules(QUALIFIED))]
NamedAnnotations = Annotated[AnnotationMap, Field(json_schema_extra=rules(QUALIFIED))]

# Kubernetes' own pattern, but for the digits of the exponent:
# 1e999999 is a number that takes minutes to write down.
QUANTITY_PATTERN = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]{1,2}))?$"
)


def _int_or_string(pattern: str, *checks: tuple[str, str]) -> Callable[[dict[str, Any]], None]:
    """What Kubernetes calls IntOrString:
    `pattern` then holds for strings only, `checks` (CEL) for both."""

    def edit(schema: dict[str, Any]) -> None:
        schema.pop("type", None)
        schema |= {
            "x-kubernetes-int-or-string": True,
            "pattern": pattern,
            **(rules(*checks) if checks else {}),
        }

    return edit


Quantity = Annotated[
    str,
    BeforeValidator(str),
    Field(
        max_length=32, pattern=QUANTITY_PATTERN, json_schema_extra=_int_or_string(QUANTITY_PATTERN)
    ),
]
"""A Kubernetes quantity: 24Gi, 500m, 2."""

IntegerText = Annotated[
    str,
    BeforeValidator(str),
    Field(
        max_length=19,
        pattern=r"^[1-9][0-9]*$",
        json_schema_extra=_int_or_string(
            r"^[1-9][0-9]*$", ("type(self) != int || self > 0", "write a whole number above zero")
        ),
    ),
]
"""A positive whole number that people write with or without quotes."""

_SUFFIXES = {
    "": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(10**3),
    "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}  # fmt: skip


def quantity_value(quantity: str) -> Decimal:
    """The number that a quantity stands for, in its base unit. Raises ValueError."""
    match = re.fullmatch(
        r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?)([A-Za-z]*)", quantity
    )
    if match is None or match[2] not in _SUFFIXES:
        raise ValueError(f"{quantity!r} is not a quantity: write 1Mi, 500m or 2")
    return Decimal(match[1]) * _SUFFIXES[match[2]]


def size(count: int) -> str:
    """A number of bytes as the shortest quantity, such as 1Mi for 1048576."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        parts, rest = divmod(count, int(_SUFFIXES[suffix]))
        if parts and not rest:
            return f"{parts}{suffix}"
    return str(count)


def _between(least_bytes: int, most: str, example: str) -> tuple[AfterValidator, Any]:
    """Bounds of a size: for what is stored already, and for the API server."""
    least = f"of at least {least_bytes} bytes" if least_bytes > 1 else "above zero"
    advice = f"write a size {least}, like {example}"
    limit = f"write a size of at most {most}, like {example}"

    def check(written: str) -> str:
        if quantity_value(written) < least_bytes:
            raise ValueError(f"{written!r} is too small: {advice}")
        if quantity_value(written) > quantity_value(most):
            raise ValueError(f"{written!r} is too large: {limit}")
        return written

    # What is no quantity at all is told by the pattern.
    compared = "!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('{}')) {} 0"
    rules = ((compared.format(least_bytes, ">="), advice), (compared.format(most, "<="), limit))
    extra = _int_or_string(QUANTITY_PATTERN, *rules)
    return AfterValidator(check), Field(
        max_length=32, pattern=QUANTITY_PATTERN, json_schema_extra=extra
    )


Size = Annotated[str, BeforeValidator(str), *_between(1, "1Pi", "8Gi")]
"""A quantity of bytes that can be had: neither zero nor less, nor more than any machine has."""

BodySize = Annotated[str, BeforeValidator(str), *_between(1024, "1Gi", "1Mi")]
"""A quantity of bytes for the largest request body."""


ImageReference = Annotated[
    str,
    Field(
        max_length=512,
        json_schema_extra=rules(
            (
                r"self.matches('^([a-zA-Z0-9][-a-zA-Z0-9.]*(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*"
                r"(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[a-zA-Z0-9_][-a-zA-Z0-9_.]{0,127})?(@sha256:[a-f0-9]{64})?$')",
                "write an image as registry.example.com/team/image:tag, or with @sha256: and 64 digits behind it",
            )
        ),
    ),
]
"""An image as a pod names it."""


class Condition(Section):
    """One aspect of an object's state, in the form of metav1.Condition."""

    type: Annotated[str, Field(max_length=64)]
    """Aspect that the condition is about, such as Ready, Available or ModelResolved."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds; Unknown means that it could not be determined."""
    observed_generation: int | None = Field(default=None, json_schema_extra={"format": "int64"})
    """The metadata.generation that the condition was computed from."""
    last_transition_time: Annotated[
        str, Field(max_length=64, json_schema_extra={"format": "date-time"})
    ]
    """Time at which `status` last changed, in RFC 3339."""
    reason: Annotated[str, Field(max_length=64), cut(63)]
    """Cause in one CamelCase word; docs/reference.md lists all of them."""
    message: Annotated[Text, cut(4096)]
    """Explanation for people: what happened, to what, and what to do next."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]
