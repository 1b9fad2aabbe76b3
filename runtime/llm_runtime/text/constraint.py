"""Constrained decoding: which tokens may come next so that an answer matches a JSON schema or a
regular expression. llguidance does the work. Only this module imports it, and it needs no torch.
Compiled grammars are remembered; a sequence gets a copy, which costs microseconds.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

from llm_runtime.errors import InvalidRequest
from llm_runtime.request import STRICT_AS, Constraint
from llm_runtime.text.schema import Compiler, prepare

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_CHARACTERS = {"json_schema": 32_768, "regex": 2_048, "json_object": 0, "grammar": 65_536}
"""What compiles within about 0.1 s, whatever it says.
Different `pattern`s of a schema together: as `regex`."""

CACHED = 128
"""Compiled grammars kept, those used last."""

MAX_LEXER_FUEL = 100_000
"""A bound on the work for regular expressions, in llguidance's unit: 20 ms."""

MOST_NAMED = 5
"""Largest number of words of a schema in one message."""

WRONG = re.compile(
    r"^(Unsatisfiable|Expected|invalid multiple)|error: (un(closed|opened) group|repetition)",
    re.MULTILINE,
)
"""Faults of the client's, not words that can't be enforced."""

WHITESPACE = r"[\x20\x0A\x0D\x09]{0,40}"
"""White space between the parts of a JSON text. It is bounded, because a small model may otherwise
write blanks until its tokens are spent."""


class GrammarMatcher:
    """Where one sequence stands in its grammar.
    Special tokens are never allowed, end tokens where it may end."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def fault(self) -> str:
        """Why it can't go on; "" while it can."""
        return (
            f"the constraint can't be followed further: {_reason(self._matcher.get_error())}"
            if self._failed
            else ""
        )

    def mask(self) -> bytes:
        """The tokens that may come next, a bit for each, lowest id in the lowest bit;
        none after a fault."""
        mask = b"" if self._failed else self._matcher.compute_bitmask()
        # It reports its own limits only now,
        # and then allows the end, which would pass for a whole answer.
        return b"" if self._failed else mask

    def advance(self, token_id: int) -> None:
        """Take a token that the mask allowed."""
        self._matcher.consume_token(token_id)

    @property
    def _failed(self) -> bool:
        return bool(self._matcher.is_error())


class Grammars:
    """Compiles constraints for one vocabulary. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Callable[[], str],
        vocabulary_size: int,
        eos_token_ids: frozenset[int],
        cached: int = CACHED,
    ) -> None:
        """`tokenizer` gives the text of its tokenizer.json;
        it is asked once, for the first constraint."""
        self._source = tokenizer
        self._size = vocabulary_size
        self._eos_token_ids = eos_token_ids
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._cached = cached
        self._lock = Lock()

    def check(self, constraint: Constraint) -> None:
        """Raise InvalidRequest, saying why, for a constraint that can't be enforced."""
        self._prototype(constraint)

    def matcher(self, constraint: Constraint) -> GrammarMatcher:
        """At the constraint's beginning. Raises as `check` does."""
        return GrammarMatcher(self._prototype(constraint).deep_copy())

    def _prototype(self, constraint: Constraint) -> "LLMatcher":
        with self._lock:
            if (found := self._compiled.get(constraint)) is not None:
                self._compiled.move_to_end(constraint)
                return found
        compiled = self._compile(constraint)
        with self._lock:
            self._compiled[constraint] = compiled
            while len(self._compiled) > self._cached:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, constraint: Constraint) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        limit = MAX_CHARACTERS[constraint.kind]
        length = len(constraint.text)
        if length > limit:
            raise _refusal(constraint, f"it has {length} characters; at most {limit} are allowed")
        tokenizer = self._vocabulary()
        try:
            grammar = _grammar(constraint)
        except RecursionError as error:
            raise _refusal(constraint, "it is nested too deeply") from error
        except ValueError as error:
            raise _refusal(constraint, _reason(str(error))) from error
        limits = LLParserLimits(initial_lexer_fuel=MAX_LEXER_FUEL, verbose_errors=False)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # Only this finds out that nothing matches.
        if matcher.is_error():
            raise _refusal(constraint, _reason(matcher.get_error()))
        return matcher

    def _vocabulary(self) -> "LLTokenizer":
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = self._read(
                        self._source(), sorted(self._eos_token_ids) or None
                    )
                except Exception as error:
                    message = (
                        f"the model's tokenizer allows no constrained output: {_reason(str(error))}"
                    )
                    raise InvalidRequest(message, code="invalid_constraint") from error
            return self._tokenizer

    def _read(self, text: str, end: list[int] | None) -> "LLTokenizer":
        from llguidance import LLTokenizer

        try:
            return LLTokenizer(text, n_vocab=self._size, eos_token=end)
        except ValueError:
            # A tokenizer may have tokens that the model has no rows for, such as an image's. The
            # mask then is longer than the logits, which `sampler` knows; without a size it is the
            # tokenizer's own.
            return LLTokenizer(text, eos_token=end)


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(constraint.text))
    if constraint.kind == "grammar":
        return str(LLMatcher.grammar_from_lark(_lark(json.loads(constraint.text))))
    schema = _enforceable(
        json.loads(constraint.text or '{"type": "object"}'), constraint.strict, _compiler()
    )
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=_options(constraint.strict)))


def _lark(grammar: dict[str, Any]) -> str:
    rules = list(grammar["rules"])
    compiler = _compiler()
    for number, schema in enumerate(grammar["schemas"]):
        strict = STRICT_AS in schema
        name = schema.pop(STRICT_AS, "")
        guided = {
            **_enforceable(schema, strict, compiler, of=f"{name}: "),
            "x-guidance": _options(strict),
        }
        rules.append(f"schema_{number}: %json {json.dumps(guided, ensure_ascii=False)}")
    return "\n".join(rules)


def _options(strict: bool) -> dict[str, Any]:
    # If lenient, the rest of unknown words, and a `oneOf` whose branches may overlap, refuse
    # nothing.
    return {"whitespace_pattern": WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}


def _enforceable(schema: Any, strict: bool, compiler: Compiler, of: str = "") -> Any:
    """What llguidance can enforce of a schema.
    Raises ValueError if that is less than a strict one says."""
    prepared = prepare(schema, compiler)
    if strict and prepared.left_out:
        words = ", ".join(prepared.left_out[:MOST_NAMED])
        raise ValueError(f"{of}strict, but {words} can't be enforced; leave it out, or strict")
    return prepared.schema


def _compiler() -> Compiler:
    return Compiler(_reads, room=MAX_CHARACTERS["regex"])


def _reads(schema: dict[str, Any]) -> bool:
    from llguidance import LLMatcher

    fault = str(LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema)))
    # A schema that contradicts itself, or is none at all, counts as readable: it is refused later,
    # with its own reason.
    return not fault or bool(WRONG.search(fault))


def _refusal(constraint: Constraint, reason: str) -> InvalidRequest:
    what = "regular expression" if constraint.kind == "regex" else "JSON schema"
    return InvalidRequest(f"the {what} can't be used: {reason}", code="invalid_constraint")


def _reason(text: str) -> str:
    """One line of what llguidance says, without the grammar around it."""
    if found := re.search(r"^error: (.+)$", text, re.MULTILINE):
        return found[1]
    if text.startswith("NoExtension"):
        return "nothing matches it"
    if text.startswith("recursion limit"):
        return "it is nested too deeply"
    if text.startswith("oneOf constraints"):
        return "strict, but it has a oneOf whose branches overlap; write anyOf, or leave strict out"
    if text.startswith("Unimplemented keys"):
        return f"strict, but {text.partition(': ')[2]} can't be enforced; leave it out, or strict"
    if "lexer_fuel" in text or "precomputation" in text:
        return "it is too complex"
    return text.splitlines()[0][:300] if text else "unknown fault"
