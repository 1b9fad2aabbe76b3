"""The words of docs/glossary.md against the code: its last column names words that the code does not
use for something, some of them in one folder or file only."""

import re
from collections.abc import Iterator

from habits.code import ROOT, sources

PAGE = ROOT / "docs" / "glossary.md"
PARTS = ("operator", "runtime")


def foreign_words() -> Iterator[str]:
    """A line for each identifier that the glossary has another word for."""
    refused = list(refusals(PAGE.read_text()))
    for part in PARTS:
        for file in sources(part):
            for line, name in file.identifiers():
                for place, word, term in refused:
                    if word == name.lower() and file.name.startswith(place):
                        yield f"{file.name}:{line}: {name}: docs/glossary.md has {term!r} for it"


def refusals(page: str) -> Iterator[tuple[str, str, str]]:
    """From the glossary's rows: where a word must not stand ("" for anywhere), the word, and the
    word instead of it."""
    for row in page.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 3:
            for entry in re.findall(r"`([^`]+)`", cells[2]):
                place, _, word = entry.rpartition("/")
                yield place, word, cells[0]
