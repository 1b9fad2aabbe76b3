"""What the way to a cluster consists of, with the seconds of each part:
printed as it goes, as a table, as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Phases:
    """Measures named parts of a run.
    `progress` gets one line when a part begins and one when it has ended."""

    progress: Callable[[str], None] = print
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.progress(f"… {name}")
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.progress(f"✓ {name}: {took:.1f} s")

    def table(self) -> str:
        """One line for each part, and their sum."""
        rows = [*self.seconds.items(), ("total", sum(self.seconds.values()))]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {seconds:7.1f} s" for name, seconds in rows)

    def write(self, file: Path) -> None:
        """The same as JSON: seconds by name."""
        file.write_text(
            json.dumps({name: round(each, 1) for name, each in self.seconds.items()}, indent=2)
            + "\n"
        )
