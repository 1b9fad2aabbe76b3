"""The Python of this repository as syntax trees, and what the habits look for in one."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("operator", "runtime", "hack", "bench", "tests")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def name(self) -> str:
        """Path of the file in the repository."""
        return str(self.path.relative_to(ROOT))

    def functions(self) -> Iterator[Function]:
        """Functions and methods, inner ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def docstrings(self) -> Iterator[tuple[int, str]]:
        """Each with its line."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | ast.ClassDef | Function) and (
                text := ast.get_docstring(node)
            ):
                yield node.body[0].lineno, text

    def texts(self) -> Iterator[tuple[int, str]]:
        """Each docstring, also of constants and fields, with its line and on one line."""
        for node in ast.walk(self.tree):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield node.lineno, " ".join(text.split())

    def identifiers(self) -> Iterator[tuple[int, str]]:
        """Each name that the file gives to something, itself included, with its line;
        without the underscores around it."""
        yield 1, self.path.stem
        for node in ast.walk(self.tree):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    yield node.lineno, name.strip("_")
                case ast.AsyncFunctionDef(name=name) | ast.arg(arg=name):
                    yield node.lineno, name.strip("_")
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    yield node.lineno, name.strip("_")

    def doubled_assignments(self) -> Iterator[int]:
        """Lines of `a, b = x, y`, two thoughts in one:
        neither an unpacking nor a swap, which reads what it assigns."""
        for node in ast.walk(self.tree):
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    assigned = {ast.unparse(target) for target in targets}
                    if not assigned & {
                        ast.unparse(part) for value in values for part in ast.walk(value)
                    }:
                        yield node.lineno


def sources(part: str) -> list[Source]:
    """All Python files of a top-level folder."""
    return [
        Source(path) for path in sorted((ROOT / part).rglob("*.py")) if "build" not in path.parts
    ]
