"""A sandbox that bounds what a template takes:
steps, processor time, and the length of texts and lists.

A step is a loop iteration, a call, a filter, a test, a comparison or an operator; one that goes
through a long text or list counts as more. A result that could be huge after a single step is
measured before it is built. Jinja's own sandbox bounds only a single `range`, not nested ones, and
no texts.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 2_000_000
MAX_SECONDS = 2.0
"""Processor time of this thread, not wall time: a busy machine is not the template's fault."""
MAX_CHARACTERS = 16_000_000
"""Length of one text. No request is that long."""
MAX_ENTRIES = 1_000_000
"""Length of one list."""
MAX_MADE = 128_000_000
"""Characters of all texts, and bytes of all lists, that one rendering creates."""
LIST_BYTES = 64
"""What a list or dict takes without its entries."""
ENTRY_BYTES = 8
PAIR_BYTES = 100
MAX_BITS = 256
MAX_WIDTH = 1000
MAX_INDENT = 32
TEXTS = (str, bytes)
LISTS = (list, tuple, dict)
CLOCK_STEPS = 256
"""Number of steps between looks at the clock."""
STEP_ENTRIES = 8
"""Number of entries of a list that count as one step."""
STEP_CHARACTERS = 1024
"""Number of characters of a text that count as one step."""

WIDTHS = {"center": MAX_WIDTH, "wordwrap": MAX_WIDTH, "indent": MAX_INDENT, "tojson": MAX_INDENT}
"""The largest number that each of these filters accepts as an argument."""
PARTS = {"batch": 100_000, "slice": 100_000}
WRITE = frozenset(
    {
        "string",
        "tojson",
        "join",
        "format",
        "pprint",
        "replace",
        "urlize",
        "xmlattr",
        "indent",
        "wordwrap",
    }
)
"""Filters that write their arguments as text, however deeply nested these are."""


class TooMuch(Exception):
    """The template exceeds a bound."""


class _Meter:
    """Counts what one rendering has taken."""

    __slots__ = ("look_at", "made", "steps", "until")

    def __init__(self) -> None:
        self.steps = self.made = 0
        self.look_at = CLOCK_STEPS
        self.until = time.thread_time() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps < self.look_at:
            return
        self.look_at = self.steps + CLOCK_STEPS
        if self.steps > MAX_STEPS or time.thread_time() > self.until:
            raise TooMuch(f"it took more than {MAX_STEPS} steps or {MAX_SECONDS:g} s")

    def through(self, value: Any) -> None:
        """Count that `value` is gone through, whatever for. Short ones are part of their step."""
        if isinstance(value, TEXTS):
            if len(value) >= STEP_CHARACTERS:
                self.step(len(value) // STEP_CHARACTERS)
        elif isinstance(value, LISTS) and len(value) >= STEP_ENTRIES:
            self.step(len(value) // STEP_ENTRIES)

    def sized(self, value: Any) -> Any:
        """Return `value`, which was made; raise `TooMuch` if it, or all that was, is too large."""
        match value:
            case str() | bytes():
                check_length(len(value))
                self.made += len(value)
            case list() | tuple() | dict():
                check_entries(len(value))
                each = PAIR_BYTES if isinstance(value, dict) else ENTRY_BYTES
                self.made += LIST_BYTES + each * len(value)
            case int() if value.bit_length() > MAX_BITS:
                raise TooMuch(f"it made a number of more than {MAX_BITS} bits")
        if self.made > MAX_MADE:
            raise TooMuch(f"it made texts and lists of more than {MAX_MADE} characters")
        self.through(value)
        return value


_meter: ContextVar[_Meter] = ContextVar("meter")


@contextmanager
def metered() -> Iterator[None]:
    """Count and bound the rendering in the block, or the compiling, which computes constants."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


def check_length(length: int) -> None:
    """Raise `TooMuch` for a text that is too long."""
    if length > MAX_CHARACTERS:
        raise TooMuch(f"it would make a text longer than {MAX_CHARACTERS}")


def check_entries(length: int) -> None:
    """Raise `TooMuch` for a list or dict that is too long."""
    if length > MAX_ENTRIES:
        raise TooMuch(f"it would make a list longer than {MAX_ENTRIES}")


def weigh(value: Any, left: int = MAX_CHARACTERS) -> int:
    """Approximate characters of `value` as text.
    Raises `TooMuch` above `left`, so it ends for cyclic values, too."""
    total = 0
    level = [value]
    meter = _meter.get()
    while level:
        item = level.pop()
        match item:
            case str() | bytes():
                total += len(item)
            case dict():
                meter.through(item)
                total += len(item)
                level += item.values()
                level += item.keys()
            case list() | tuple():
                meter.through(item)
                total += len(item)
                level += item
            case _:
                total += 1
        if total > left:
            raise TooMuch(f"it would make a text longer than {MAX_CHARACTERS}")
    return total


class _Counted:
    """An iterable of a loop. Each iteration counts as a step."""

    __slots__ = ("_values",)

    def __init__(self, values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        meter = _meter.get()
        for value in self._values:
            meter.step()
            yield value


def _joined(parts: list[Any]) -> str:
    check_length(sum(map(weigh, parts)))
    return str(_meter.get().sized("".join(map(str, parts))))


def _concat(parts: Iterable[str]) -> str:
    """Join the output of a template or a part of it, bounded."""
    texts = []
    length = 0
    for text in parts:
        texts.append(text)
        length += len(text)
        check_length(length)
    return str(_meter.get().sized("".join(texts)))


@pass_context  # Or Jinja would compute it once, and have Python make the same anew each time.
def _made(_context: Context, value: Any) -> Any:
    """What an expression makes that is no call and no operator."""
    return _meter.get().sized(value)


def _compared(value: Any) -> Any:
    """One side of a comparison, which goes through all of it."""
    if isinstance(value, LISTS):
        weigh(value)
    else:
        _meter.get().through(value)
    return value


def _finalized(value: Any) -> Any:
    if not isinstance(value, str | int | float | Undefined | None):
        weigh(value)
    return value


def _filter(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    skipped = 1 if hasattr(apply, "jinja_pass_arg") else 0
    most = WIDTHS.get(name) or PARTS.get(name) or MAX_CHARACTERS

    @wraps(apply)
    def bounded(*args: Any, **named: Any) -> Any:
        meter = _meter.get()
        meter.step()
        given = [*args[skipped:], *named.values()]
        for each in given:
            meter.through(each)
        for number in given[1:]:
            if isinstance(number, int) and number > most:
                raise TooMuch(f"the filter {name} takes numbers up to {most}")
        if name in WRITE:
            weighed = sum(map(weigh, given))
            if name in ("replace", "indent", "join", "wordwrap"):
                _check_growth(name, given, weighed)
            if name == "format":
                _check_format(str(given[0]), given[1:])
        return meter.sized(apply(*args, **named))

    return bounded


def _test(apply: Any) -> Callable[..., Any]:
    @wraps(apply)
    def bounded(*args: Any, **named: Any) -> Any:
        meter = _meter.get()
        meter.step()
        for each in (*args, *named.values()):
            meter.through(each)
        return apply(*args, **named)

    return bounded


def _check_growth(name: str, given: list[Any], weighed: int) -> None:
    """Bound the result of filters that insert text many times."""
    texts = [len(argument) for argument in given[1:] if isinstance(argument, str)]
    added = max(
        [*texts[-1:], *(argument for argument in given[1:] if isinstance(argument, int)), 1]
    )
    if name == "replace" and len(given) > 2:
        times = str(given[0]).count(str(given[1]))
    elif name == "join":
        times = len(given[0]) if hasattr(given[0], "__len__") else weighed
    else:
        times = str(given[0]).count("\n") if name == "indent" else weighed
    check_length(weighed + times * added)


def _check_format(layout: str, values: Iterable[Any]) -> None:
    widths = [int(number) for number in re.findall(r"[0-9]+", layout)]
    if "*" in layout or re.search(r":[^}]*\{", layout):  # The width is one of the values.
        widths += [value for value in values if isinstance(value, int)]
    if any(width > MAX_WIDTH for width in widths):
        raise TooMuch(f"a width in a format is over {MAX_WIDTH}")


def _check_method(text: str | bytes, name: str, args: list[Any]) -> None:
    """Bound the result of string methods that return longer texts."""
    length = len(text)
    match name, args:
        case (("center" | "ljust" | "rjust" | "zfill"), [int() as width, *_]):
            check_length(width)
        case "expandtabs", [int() as width, *_]:
            check_length(length * max(1, width))
        case "replace", [old, new, *_]:
            check_length(length + text.count(old) * len(new))
        case "join", [values, *_]:
            check_length(sum(map(len, values)) + length * len(values))
        case "translate", [Mapping() as table, *_]:
            check_length(
                length * max([1, *(len(new) for new in table.values() if isinstance(new, str))])
            )
        case (("format" | "format_map"), values):
            weigh(values)
            _check_format(
                str(text),
                [
                    *values,
                    *(v for value in values if isinstance(value, dict) for v in value.values()),
                ],
            )


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's strictest sandbox, with bounds.
    Render inside `metered`. `TooMuch` says which bound was exceeded."""

    intercepted_binops = frozenset({"+", "-", "*", "%", "**", "//", "/"})
    concat = staticmethod(_concat)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_finalized, **options)
        del self.globals["lipsum"]

    def bound_filters(self) -> None:
        """Put all filters and tests behind bounds. Call it after the last one was added."""
        for name, apply in self.filters.items():
            self.filters[name] = _filter(name, apply)
        for name, apply in self.tests.items():
            self.tests[name] = _test(apply)
        # They do what a filter would have to: count.
        self.filters |= {
            "_counted": _Counted,
            "_joined": _joined,
            "_made": _made,
            "_compared": _compared,
        }

    def call(__self, __context: Context, __obj: Any, *args: Any, **named: Any) -> Any:
        meter = _meter.get()
        meter.step()
        text = getattr(__obj, "__self__", None)
        for each in (text, args, *args, *named.values()):
            meter.through(each)
        for number in (*args, *named.values()):
            if (
                isinstance(number, int)
                and number > MAX_CHARACTERS
                and isinstance(text, str | bytes | int)
            ):
                raise TooMuch(f"{__obj.__name__} takes numbers up to {MAX_CHARACTERS} here")
        if isinstance(text, str | bytes):
            if __obj.__name__ == "join":
                args = tuple(list(parts) for parts in args)
            _check_method(text, __obj.__name__, [*args, *named.values()])
        return meter.sized(super().call(__context, __obj, *args, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter.get()
        meter.step()
        match operator, left, right:
            case ("*", str() | bytes() | list() | tuple(), int()) | (
                "*",
                int(),
                str() | bytes() | list() | tuple(),
            ):
                text, times = (left, right) if isinstance(right, int) else (right, left)
                check_length(weigh(text) * max(0, times))
            case "%", str() | bytes(), _:
                values = right if isinstance(right, tuple) else (right,)
                weigh(values)
                _check_format(str(left), values)
            case "**", int(), int() if abs(right) * max(1, left.bit_length()) > MAX_BITS:
                raise TooMuch(f"it would make a number of more than {MAX_BITS} bits")
        return meter.sized(super().call_binop(context, operator, left, right))

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        return super()._generate(_Bounded(self).visit(source), *args, **named)


class _Bounded(NodeTransformer):
    """Rewrites loops, `~`, comparisons, slices and written lists to use filters of this module,
    because Jinja compiles them to plain Python."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)  # changes it in place
        assert isinstance(node.iter, nodes.Expr)
        node.iter = self._through("_counted", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._through(
            "_joined", nodes.List(node.nodes, lineno=node.lineno, environment=self._environment)
        )

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
        for side in sides:
            if not isinstance(side.expr, nodes.Const):
                side.expr = self._through("_compared", side.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_made", node) if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_made", node) if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._through("_made", node) if node.items and node.ctx == "load" else node

    def _through(self, name: str, value: nodes.Expr) -> nodes.Filter:
        filtered = nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)
        filtered.set_environment(self._environment)
        return filtered
