"""`python -m habits`: say what has become less readable, and fail if anything has.
Part of `make check`."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from habits import figures
from habits.code import PARTS, ROOT, sources
from habits.map import lost_places, stale_map
from habits.unused import unused_code
from habits.words import foreign_words

MOST_MODULES = 18
FULL_FOLDERS = {
    "bench": 25,
    "hack/devstack": 23,
    "runtime/llm_runtime/api": 19,
}
"""Folders that have more modules, and how many they may have. To be emptied, not to be added to."""
DOUBLED = {"tests": 8}
"""Doubled assignments that are there, by part. They may only become fewer."""
SHOWN = 20
LEAST_WORDS = 4
NEEDS_ITS_NEIGHBOURS = re.compile(r"(Of|And|Or|Nor|It|Its|They|Their|That|Those)\b")
LONG_LINES_PERCENT = 2
"""The share of a part's lines that may be longer. Tables laid out by hand are; little else needs it."""


def main() -> None:
    """Print each fault on a line of its own."""
    faults = [
        *doubled_assignments(),
        *long_lines(),
        *full_folders(),
        *short_descriptions(),
        *cut_docstrings(),
        *dependent_docstrings(),
        *stale_map(),
        *lost_places(),
        *foreign_words(),
        *unused_code(),
    ]
    print("\n".join(faults))
    sys.exit(bool(faults))


def doubled_assignments() -> Iterator[str]:
    for part in PARTS:
        lines = [
            f"{file.name}:{line}" for file in sources(part) for line in file.doubled_assignments()
        ]
        allowed = DOUBLED.get(part, 0)
        if len(lines) > allowed:
            yield (
                f"{part}: {len(lines)} assignments of two things on one line, {allowed} are"
                " allowed: write one a line"
            )
            yield from (f"  {line}" for line in lines[:SHOWN])
        elif len(lines) < allowed:
            yield (
                f"{part}: {len(lines)} assignments of two things on one line: lower DOUBLED in"
                " hack/habits to that"
            )


def long_lines() -> Iterator[str]:
    for part in PARTS:
        lines = [line for file in sources(part) for line in file.text.splitlines()]
        share = figures.long_lines(lines)
        if share > LONG_LINES_PERCENT:
            yield (
                f"{part}: {share:.1f} % of the lines have more than {figures.LONG_LINE} characters,"
                f" {LONG_LINES_PERCENT} % are allowed: break them where a thought ends"
            )


def full_folders() -> Iterator[str]:
    modules = Counter(
        str(file.path.parent.relative_to(ROOT))
        for part in ("operator", "runtime", "hack", "bench")
        for file in sources(part)
        if not file.path.name.startswith("__")
    )
    for folder, count in sorted(modules.items()):
        if count > FULL_FOLDERS.get(folder, MOST_MODULES):
            yield f"{folder}: {count} modules, more than {MOST_MODULES}: make a folder in it"
    for folder, allowed in FULL_FOLDERS.items():
        if modules[folder] < allowed:
            yield (
                f"{folder}: {modules[folder]} modules: lower or remove it in FULL_FOLDERS of"
                " hack/habits"
            )


def short_descriptions() -> Iterator[str]:
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        version = yaml.safe_load(file.read_text())["spec"]["versions"][0]
        schema = version["schema"]["openAPIV3Schema"]
        for path, text in described(file.stem, schema):
            if len(text.split()) < LEAST_WORDS:
                yield (
                    f"crds/{file.name}: {path} is described by {text!r}: write {LEAST_WORDS} words"
                    " or more"
                )


def described(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each described field below `schema`, with its description."""
    for name, field in schema.get("properties", {}).items():
        if "description" in field:
            yield f"{path}.{name}", field["description"]
        yield from described(f"{path}.{name}", field)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from described(f"{path}[]", schema[inner])


def cut_docstrings() -> Iterator[str]:
    """The summary is a sentence: an empty line in its middle is a slip of line breaking."""
    for part in PARTS:
        for file in sources(part):
            for line, text in file.docstrings():
                summary = text.split("\n\n")[0].rstrip()
                if "\n\n" in text and not summary.endswith((".", ":", "!", "?", "…", ")", "`")):
                    yield (
                        f"{file.name}:{line}: the docstring's first paragraph ends in mid-sentence"
                    )


def dependent_docstrings() -> Iterator[str]:
    """A docstring begins with its subject, so that it can be read alone and found by a search."""
    for part in ("operator", "runtime", "hack", "bench"):
        for file in sources(part):
            for line, text in file.texts():
                if NEEDS_ITS_NEIGHBOURS.match(text):
                    yield (
                        f"{file.name}:{line}: the docstring begins with {text.split()[0]!r}: name"
                        " what it is about"
                    )


if __name__ == "__main__":
    main()
