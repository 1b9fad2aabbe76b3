"""How far loading a model has got."""

import time
from collections.abc import Callable
from typing import Any, Literal

from llm_runtime.fetching.progress import Rate


class Arrival:
    """One model that is fetched and then loaded.
    A `Progress`: its download tells it, from another thread."""

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`model` is what an administrator wrote: maybe an address or a path."""
        self.model = model
        self.name: str | None = None
        """As clients will know it; None until that is found out."""
        self.step: Literal["fetching", "loading"] = "fetching"
        self._rate = Rate(clock)
        self._figures: tuple[int, int, float] | None = None
        """Replaced as a whole, so that who reads meanwhile sees three that belong together."""

    def __call__(self, done: int, total: int) -> None:
        self._figures = done, total, self._rate(done)

    def report(self) -> dict[str, Any]:
        """For `/status`, open to everybody: without what the administrator wrote.

        Without figures where nothing had to be downloaded, or the list of files is not there yet.
        """
        found: dict[str, Any] = {"model_name": self.name, "step": self.step}
        if self._figures is None:
            return found
        done, total, rate = self._figures
        percent = 100 * done // max(total, 1)
        return found | {
            "percent": percent,
            "bytes": done,
            "total_bytes": total,
            "bytes_per_second": round(rate),
        }
