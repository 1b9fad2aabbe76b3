"""The map of docs/architecture.md: each module with its docstring's summary,
and the layers of imports.

`python -m habits.map` writes both again.
"""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from habits.code import ROOT, Function, Source, sources

PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- map: made by `PYTHONPATH=hack python -m habits.map`; do not edit -->\n"
END = "<!-- end of map -->\n"
LAYERS_BEGIN = "<!-- layers: made by the same, from pyproject.toml; do not edit -->\n"
LAYERS_END = "<!-- end of layers -->\n"
PARTS = ("operator", "runtime", "hack", "bench")
PROGRAMS = {"op": "operator/llm_operator/", "rt": "runtime/llm_runtime/"}
FILES = ("py", "cpp", "yaml", "md")


def main() -> None:
    """Write the map into the page."""
    PAGE.write_text(updated(PAGE.read_text()))


def updated(page: str) -> str:
    """`page` with the map and the layers as the code is now."""
    page = _between(page, BEGIN, "\n" + "\n".join(lines()) + "\n", END)
    return _between(
        page, LAYERS_BEGIN, "\n".join(layers(ROOT / "pyproject.toml")) + "\n", LAYERS_END
    )


def _between(page: str, begin: str, text: str, end: str) -> str:
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def layers(project: Path) -> Iterator[str]:
    """A table of each contract of layers:
    what stands before an arrow may import what stands behind it."""
    contracts = tomllib.loads(project.read_text())["tool"]["importlinter"]["contracts"]
    yield "| from the top | layers |\n| --- | --- |"
    for contract in contracts:
        if contract["type"] == "layers":
            told = " → ".join(f"`{layer.replace(' | ', '`, `')}`" for layer in contract["layers"])
            yield f"| {contract['containers'][0]} | {told} |"


def lines() -> Iterator[str]:
    folders: dict[str, list[Source]] = defaultdict(list)
    for part in PARTS:
        for file in sources(part):
            if "migrations" not in file.path.parts:
                folders[str(file.path.parent.relative_to(ROOT))].append(file)
    for folder, files in sorted(
        folders.items(), key=lambda item: (PARTS.index(item[0].split("/")[0]), item[0])
    ):
        own = next((summary(file) for file in files if file.path.stem == "__init__"), "")
        yield f"### {folder}/\n"
        if own:
            yield f"{own}\n"
        yield "| module | what for |\n| --- | --- |"
        for file in files:
            told = definitions(file) if file.path.stem == "__init__" else summary(file)
            if told:
                yield f"| `{file.path.stem}` | {told} |"
        yield ""


def summary(file: Source) -> str:
    """The docstring's first paragraph on one line."""
    return _first_paragraph(file.tree)


def definitions(file: Source) -> str:
    """What a package defines in its `__init__` itself, each with its summary."""
    return " ".join(
        f"`{node.name}`: {_first_paragraph(node)}"
        for node in file.tree.body
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_")
    )


def _first_paragraph(node: ast.Module | ast.ClassDef | Function) -> str:
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def stale_map() -> Iterator[str]:
    """Each module stands on the map, and each name on it exists: it is what the code says."""
    if PAGE.read_text() != updated(PAGE.read_text()):
        yield "docs/architecture.md: the map is out of date: run hack/generate"


def lost_places() -> Iterator[str]:
    """Each file of the table "Where do I change…" exists, and has the names that follow it."""
    table = PAGE.read_text().partition("## Where do I change")[2].partition("\n## ")[0]
    files = {file.name: file for part in PARTS for file in sources(part)}
    for row in table.splitlines():
        for name in _lost(row, files):
            yield f"docs/architecture.md: {name} in the table of changes does not exist"


def _lost(row: str, files: Mapping[str, Source]) -> Iterator[str]:
    """Paths are below the program that was named last, and names are in the file before them."""
    below = ""
    file: Source | None = None
    for program, name in re.findall(r"(?:\b(op|rt) )?`([^`\s:<]+)`", row):
        below = PROGRAMS.get(program, below)
        module, _, member = name.rpartition(".")
        if "/" in name[1:] or member in FILES or (ROOT / name).is_file():
            path = next((each for each in (below + name, name) if (ROOT / each).exists()), "")
            if not path and not below:
                path = next((each for each in files if f"/{name}" in f"/{each}"), "")
            file = files.get(path)
            if not path:
                yield name
        elif module.isidentifier():
            found = [each for each in files.values() if each.path.stem == module]
            if not any(_has(each, member) for each in found):
                yield name
        elif name.isidentifier() and not (file and _has(file, name)):
            yield name


def _has(file: Source, name: str) -> bool:
    return any(name.strip("_") == other for _, other in file.identifiers())


if __name__ == "__main__":
    main()
