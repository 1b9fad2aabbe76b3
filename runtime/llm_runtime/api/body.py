"""What the bodies of all dialects have in common: strict types, bounded fields, and no field
that is ignored."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from llm_runtime import errors
from llm_runtime.engine.limits import ENGINE_STOPS
from llm_runtime.request import Sampling

BASE = "base"
"""`<model>:base`: the model itself, whatever adapter answers for its bare name."""
MAX_MESSAGES = 2048
"""Largest number of messages of a conversation, and of parts of a message: as many as OpenAI's API
takes."""
MAX_STOP_CHARACTERS = 256
MAX_DEPTH = 64
"""Levels of what a chat template may have to write."""


class Body(BaseModel):
    """A request body. An unknown field is refused; null means the same as leaving a field out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    no_effect: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that are not implemented, each with the values that ask for nothing:
    clients send those unasked."""
    hints: ClassVar[frozenset[str]] = frozenset()
    """Fields that can't change an answer, whatever they say: they are taken and dropped."""

    _fields: ClassVar[frozenset[str]] = frozenset()
    _doubtful: ClassVar[tuple[str, ...]] = ()
    """The fields as requests name them, and those of them with values that ask for nothing."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls._fields = frozenset(field.alias or name for name, field in cls.model_fields.items())
        cls._doubtful = tuple(cls._fields & cls.no_effect.keys())

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # Most requests have nothing to drop, and this runs for each of their messages.
        if None not in data.values() and data.keys() <= cls._fields:
            for name in cls._doubtful:
                if name in data and cls._asks_nothing(name, data[name]):
                    break
            else:
                return data
        return {
            name: value
            for name, value in data.items()
            if value is not None and not cls._asks_nothing(name, value)
        }

    @classmethod
    def _asks_nothing(cls, name: str, value: Any) -> bool:
        for idle in cls.no_effect.get(name, ()):
            # True == 1 in Python, but not in JSON.
            if value == idle and isinstance(value, bool) == isinstance(idle, bool):
                return True
        return name in cls.hints


class Baggage(Body):
    """Something that a client hands back or describes,
    with what other servers and frameworks have written on it.

    An unknown field of it is no wish, and is dropped.
    Those wishes that some server reads there are in `no_effect`.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})

    @classmethod
    def _asks_nothing(cls, name: str, value: Any) -> bool:
        known = name in cls._fields or name in cls.no_effect
        return not known or super()._asks_nothing(name, value)


def one_of(types: Collection[str], instead: str) -> BeforeValidator:
    """A check of a `type` whose error says what to send `instead` of those that aren't known."""
    known = ("one of " if len(types) > 1 else "") + ", ".join(types)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in types:
            raise ValueError(f"must be {known} here; {instead}")
        return value

    return BeforeValidator(check)


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def whole(text: str) -> str:
    """`text`, if it is one."""
    # JSON can write half of a surrogate pair; neither tokenizers nor UTF-8 can.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no text") from None
    return text


def writable(structure: dict[str, Any]) -> dict[str, Any]:
    """Return `structure` if it can be written into a prompt. Raises ValueError otherwise."""
    depth = 0
    level = list[Any]([structure])
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        level = [
            inner for value in level for inner in _inside(value) if isinstance(inner, dict | list)
        ]
    # UnicodeEncodeError, for half a surrogate pair, is a ValueError, and so is NaN's error.
    json.dumps(structure, ensure_ascii=False, allow_nan=False).encode()
    return structure


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


Text = Annotated[str, AfterValidator(whole)]
Structure = Annotated[dict[str, Any], AfterValidator(writable)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
MaxTokens = Annotated[int, Field(ge=1)]
StopText = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[StopText],
    Field(max_length=ENGINE_STOPS),
    BeforeValidator(_one_or_several, json_schema_input_type=str | list[str]),
]


def sampling(
    *, max_tokens: int, temperature: float, top_p: float, stop: list[str], **options: Any
) -> Sampling:
    """The engine's way of saying it; `options` are other fields of `Sampling`. OpenAI allows
    `top_p` 0, which leaves the likeliest token: greedy."""
    greedy = temperature == 0 or top_p == 0
    return Sampling(
        max_tokens=max_tokens,
        temperature=0.0 if greedy else temperature,
        top_p=1.0 if greedy else top_p,
        stop=tuple(stop),
        **options,
    )


def recommended(body: Body, defaults: Mapping[str, float]) -> dict[str, float]:
    """The model's own `defaults` of sampling for what the body leaves out."""
    said = body.model_fields_set
    return {name: value for name, value in defaults.items() if name not in said}


def schema_text(schema: dict[str, Any]) -> str:
    """A JSON schema for a `Constraint`.
    Raises `errors.InvalidRequest` for one that is nested too deeply."""
    # Equal schemas share an entry in the grammar cache.
    # Keys are not sorted: the order of properties has a meaning.
    try:
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise errors.InvalidRequest(
            "The JSON schema is nested too deeply.", code="invalid_constraint"
        ) from None


def conflict(field: str, text: str) -> PydanticCustomError:
    """An error about how fields go together, to raise from a model validator;
    `field` is the one to change."""
    return PydanticCustomError("conflict", "{text}", {"field": field, "text": text})


def check_model(
    asked: str, served: str, adapters: Sequence[str] = (), default: str = "", field: str = "model"
) -> str:
    """The adapter that `asked`, the value of `field`, names; "" for the model itself. Raises
    `errors.NotFound` for anything else.

    `adapters` are those that the caller may use. Whether others exist is not told. With a `default`
    adapter the bare name means that adapter, and `<served>:base` the model, unless an adapter has
    that name.
    """
    bare = not default or default in adapters
    if asked == served and bare:
        return default
    adapter = asked.removeprefix(f"{served}:")
    if adapter != asked and adapter in adapters:
        return adapter
    if adapter != asked and adapter == BASE:
        return ""
    own = served if bare else f"{served}:{BASE}"
    known = ", ".join(
        repr(name) for name in (own, *(f"{served}:{adapter}" for adapter in adapters))
    )
    message = f"There is no model {asked[:100]!r} here that this key may use; it may use {known}."
    raise errors.NotFound(message, param=field, code="model_not_found")
