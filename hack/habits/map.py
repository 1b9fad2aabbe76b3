"""The map of docs/architecture.md: each module with its docstring's summary,
and the layers of imports.

`python -m habits.map` writes both again.
"""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from habits.code import ROOT, Source, sources

PAGE = ROOT / "docs" / "architecture.md"
BEGIN = "<!-- map: made by `PYTHONPATH=hack python -m habits.map`; do not edit -->\n"
END = "<!-- end of map -->\n"
LAYERS_BEGIN = "<!-- layers: made by the same, from pyproject.toml; do not edit -->\n"
LAYERS_END = "<!-- end of layers -->\n"
PARTS = ("operator", "runtime", "hack", "bench")


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
        yield from (
            f"| `{file.path.stem}` | {summary(file)} |"
            for file in files
            if file.path.stem != "__init__"
        )
        yield ""


def summary(file: Source) -> str:
    """The docstring's first paragraph on one line."""
    text = (ast.get_docstring(file.tree) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def stale_map() -> Iterator[str]:
    """Each module stands on the map, and each name on it exists: it is what the code says."""
    if PAGE.read_text() != updated(PAGE.read_text()):
        yield "docs/architecture.md: the map is out of date: run hack/generate"


def lost_places() -> Iterator[str]:
    """Each file and each `module.name` of the table "Where do I change…" exists."""
    table = PAGE.read_text().partition("## Where do I change")[2].partition("\n## ")[0]
    files = [file for part in PARTS for file in sources(part)]
    paths = [file.name for file in files] + ["runtime/llm_runtime/compute/kernels.cpp"]
    for name in re.findall(r"`([a-z_/]+\.\w+)`", table):
        module, _, member = name.rpartition(".")
        found = [file for file in files if file.name.endswith(f"/{module}.py")]
        if member in ("py", "cpp"):
            known = any(f"/{path}".endswith(f"/{name}") for path in paths)
        else:
            known = any(member == other for file in found for _, other in file.identifiers())
        if not known:
            yield f"docs/architecture.md: {name} in the table of changes does not exist"


if __name__ == "__main__":
    main()
