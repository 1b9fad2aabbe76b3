"""How often a value goes back and forth: `PYTHONPATH=hack python -m habits.walk` follows `situation`
through `rollout.advance` and `observed` through `plans.deployment`.

Definition. The walk follows a value, and all that is computed from it, into each function of the
operator that gets it as an argument, in the order of the text, and into each function's body once.
A room is a module. Modules of nouns are no rooms, as the walk carries them along; a strategy and
what it inherits are one. A return is a step into a room that the walk has left before.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from habits.code import Function, sources
from habits.figures import module_name

WALKS = (
    ("llm_operator.plans.rollout", "advance", "situation"),
    ("llm_operator.plans.llmdeployment", "deployment", "observed"),
)
NOUNS = ("situation", "move", "candidate", "decision", "state", "states", "names", "reasons")
STRATEGY = "canary"
"""The strategy whose methods are walked through."""


def main() -> None:
    """Print the number of calls, rooms and returns of each walk."""
    for module, function, parameter in WALKS:
        rooms = list(Walk().calls(module, function, {0}))
        print(
            f"{parameter} in {module}.{function}: {len(rooms)} calls, {len(set(rooms))} rooms,"
            f" {returns(rooms)} returns"
        )


def returns(rooms: list[str]) -> int:
    """How often a room is entered that was left before."""
    seen = set(rooms[:1])
    count = 0
    for before, room in pairwise(rooms):
        count += room != before and room in seen
        seen.add(room)
    return count


class Walk:
    """A walk through the operator's code."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], Function] = {}
        self._methods: dict[str, list[tuple[str, Function]]] = defaultdict(list)
        self._names: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
        """By module: what each imported name is, as a module ("" for all of it) and a name in it."""
        self._walked: set[int] = set()
        files = {module_name(file): file for file in sources("operator")}
        for module, file in files.items():
            for node in ast.walk(file.tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    for alias in node.names:
                        whole = f"{node.module}.{alias.name}"
                        found = (whole, "") if whole in files else (node.module, alias.name)
                        self._names[module][alias.asname or alias.name] = found
            for node in file.tree.body:
                if isinstance(node, Function):
                    self._functions[module, node.name] = node
                elif isinstance(node, ast.ClassDef) and ".rollout." in module:
                    for method in node.body:
                        if isinstance(method, Function):
                            self._methods[method.name].append((module, method))

    def calls(self, module: str, name: str, given: set[int | str]) -> Iterator[str]:
        """The rooms of a function, and of all that it gives the value to."""
        yield from self._body(module, self._functions[module, name], given, method=False)

    def _body(
        self, module: str, function: Function, given: set[int | str], *, method: bool
    ) -> Iterator[str]:
        last = module.rpartition(".")[2]
        if last not in NOUNS and ".crds" not in module:
            yield "strategy" if last == STRATEGY else last
        if id(function) in self._walked:
            return
        self._walked.add(id(function))
        arguments = [argument.arg for argument in function.args.args][method:]
        known = {arguments[i] for i in given if isinstance(i, int) and i < len(arguments)}
        known |= {name for name in given if isinstance(name, str)}
        for node in function.body:
            yield from self._statement(module, node, known)

    def _statement(self, module: str, node: ast.AST, known: set[str]) -> Iterator[str]:
        match node:
            case ast.For(target=target, iter=steps) | ast.comprehension(target=target, iter=steps):
                yield from self._loop(module, steps)
                if _has(steps, known):
                    known |= _stored(target)
            case ast.Assign() | ast.AnnAssign() | ast.NamedExpr() if node.value is not None:
                yield from self._statement(module, node.value, known)
                if _has(node.value, known):
                    known |= _stored(node)
                return
            case ast.Call(func=called, args=places, keywords=words):
                for child in ast.iter_child_nodes(node):
                    yield from self._statement(module, child, known)
                given: set[int | str] = {i for i, each in enumerate(places) if _has(each, known)}
                given |= {each.arg for each in words if each.arg and _has(each.value, known)}
                if given:
                    yield from self._call(module, called, given)
                return
        for child in ast.iter_child_nodes(node):
            yield from self._statement(module, child, known)

    def _loop(self, module: str, steps: ast.AST) -> Iterator[str]:
        """`for step in (pin, choose): decision = step(decision)` calls each step."""
        if isinstance(steps, ast.Tuple):
            for step in steps.elts:
                yield from self._call(module, step, {0})

    def _call(self, module: str, called: ast.AST, given: set[int | str]) -> Iterator[str]:
        match called:
            case ast.Name(id=name):
                place = (module, name)
                while place not in self._functions and place[1] in self._names[place[0]]:
                    place = self._names[place[0]][place[1]]
                if place in self._functions:
                    yield from self._body(place[0], self._functions[place], given, method=False)
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                place = (self._names[module].get(owner, ("", ""))[0], name)
                if place in self._functions:
                    yield from self._body(place[0], self._functions[place], given, method=False)
                elif owner in ("strategy", "self"):
                    for other, method in sorted(self._methods[name], key=_by_strategy)[:1]:
                        yield from self._body(other, method, given, method=True)


def _by_strategy(found: tuple[str, Function]) -> int:
    """The walked strategy's own method first, then the inherited one."""
    room = found[0].rpartition(".")[2]
    return (STRATEGY, "strategy").index(room) if room in (STRATEGY, "strategy") else 2


def _has(node: ast.AST, known: set[str]) -> bool:
    return any(isinstance(each, ast.Name) and each.id in known for each in ast.walk(node))


def _stored(node: ast.AST) -> set[str]:
    return {
        each.id
        for each in ast.walk(node)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


if __name__ == "__main__":
    main()
