"""The code in figures: `PYTHONPATH=hack python -m habits.figures [PART…]` prints the table of
docs/development.md.

Definitions. File: a .py file, its lines counted with comments and blank ones. Function: functions
and methods, inner ones too, from `def` to the last line. p90: nine of ten are at most as long.
Doubled assignment: `a, b = x, y` that neither swaps nor unpacks. Circle: a group of modules that
import each other, functions' own imports included.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator

from habits.code import ROOT, Source, sources

LONG_FUNCTION = 40
LONG_LINE = 100
"""The code is formatted to that many characters a line; only what is laid out by hand is longer."""
HEADER = (
    "part", "lines / files", "file median, p90, max", "function median, p90, max", f"functions > {LONG_FUNCTION} lines",
    "comments per 100 lines", f"lines > {LONG_LINE} characters", "doubled assignments", "walrus", "import circles",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    rows = [
        row(part, sources(part))
        for part in sys.argv[1:] or ("operator", "runtime", "hack", "bench", "tests")
    ]
    for cells in (HEADER, ("---",) * len(HEADER), *rows):
        print("| " + " | ".join(cells) + " |")


def row(part: str, files: list[Source]) -> tuple[str, ...]:
    """The figures of one part."""
    lines = [line for file in files for line in file.text.splitlines()]
    lengths = [len(file.text.splitlines()) for file in files]
    functions = [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for file in files
        for node in file.functions()
    ]
    comments = sum(comment_count(file.text) for file in files)
    walrus = sum(isinstance(node, ast.NamedExpr) for file in files for node in ast.walk(file.tree))
    return (
        part,
        f"{len(lines):,} / {len(files)}",
        spread(lengths),
        spread(functions),
        f"{sum(length > LONG_FUNCTION for length in functions)} of {len(functions):,}",
        f"{100 * comments / len(lines):.1f}",
        f"{long_lines(lines):.1f} %",
        str(sum(len(list(file.doubled_assignments())) for file in files)),
        str(walrus),
        str(len(circles(files))),
    )


def long_lines(lines: list[str]) -> float:
    """The share of long lines, in percent."""
    return 100 * sum(len(line) > LONG_LINE for line in lines) / len(lines)


def spread(lengths: list[int]) -> str:
    """Median, p90, maximum."""
    p90 = statistics.quantiles(lengths, n=10, method="inclusive")[-1]
    return f"{statistics.median(lengths):g}, {p90:.0f}, {max(lengths)}"


def comment_count(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def circles(files: list[Source]) -> list[set[str]]:
    """Groups of modules that reach each other by imports."""
    modules = {module_name(file): file for file in files}
    imports = {
        name: set(imported(name, file.tree, modules)) - {name} for name, file in modules.items()
    }
    reached = {name: reachable(name, imports) for name in modules}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in modules
    }
    return [set(group) for group in groups if group]


def module_name(file: Source) -> str:
    """Dotted, from the folder that is on the path:
    `operator`, `runtime`, `hack`, or the repository for others."""
    parts = list(file.path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("operator", "runtime", "hack"):
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(name: str, tree: ast.Module, modules: dict[str, Source]) -> Iterator[str]:
    """Modules that are imported by name.
    A package's own `__init__` counts where something is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in modules:
                    yield submodule
                elif node.module in modules:
                    yield node.module


def reachable(start: str, imports: dict[str, set[str]]) -> set[str]:
    """All that `start` imports, directly or not."""
    found: set[str] = set()
    left = [start]
    while left:
        new = imports[left.pop()] - found
        found |= new
        left += new
    return found


if __name__ == "__main__":
    main()
