"""The figures that a run has seen: said at once, and as one table and a JSON file at the end.

They are measured, not judged: a machine that does other work is slow, and no test fails by it.
"""

from __future__ import annotations

import json
from pathlib import Path

SEEN: dict[str, str] = {}


def note(what: str, figure: str) -> None:
    """Keep a figure with its unit under a name that a reader of docs/development.md understands."""
    SEEN[what] = figure
    print(f"\n  {what}: {figure}", flush=True)


def table() -> str:
    return "\n".join(f"| {what} | {figure} |" for what, figure in SEEN.items())


def write(file: Path) -> None:
    file.write_text(json.dumps(SEEN, indent=2, ensure_ascii=False) + "\n")
