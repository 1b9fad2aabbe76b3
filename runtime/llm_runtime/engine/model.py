"""A model as the loop serves it: what loading hands over, and what is to happen to it."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from llm_runtime.contract import RuntimeConfig
from llm_runtime.engine.adapters import AdapterTable
from llm_runtime.engine.limits import RequestLimits
from llm_runtime.engine.messages import DropAdapter, Report
from llm_runtime.engine.recovery import CarefulRunner, Runner
from llm_runtime.engine.scheduler import Scheduler
from llm_runtime.engine.sequence import Vocabulary
from llm_runtime.request import TextCodec


class ModelCodec(TextCodec, Vocabulary, Protocol):
    """A tokenizer as both sides need it."""


@dataclass(slots=True, eq=False)
class Model:
    """A model that is loaded and has answered once: all that the loop needs of it."""

    scheduler: Scheduler
    runner: Runner
    codec: ModelCodec
    limits: RequestLimits
    adapters: AdapterTable
    device: str = "cpu"
    kind: Literal["batched", "sequential"] = "batched"
    load_seconds: float = 0.0
    load_peak_bytes: int = 0
    memory_bytes: Callable[[], int] | None = None
    """Memory in use on the device; None on a CPU."""
    free: Callable[[], object] = gc.collect
    """Give memory back to the system, once nothing refers to the model any more."""


TellCodec = Callable[[ModelCodec], None]
"""Hand out a model's codec while its weights are still being loaded. May be called on any thread."""
Build = Callable[[RuntimeConfig, Path, TellCodec], Model]
"""Load and check a model. Raises errors.Fatal subclasses. Called on a thread of its own."""


Send = Callable[[Report], None]
"""Tell the client. Called on the loop's thread only."""
Post = Callable[[Callable[[], None]], None]
"""Have something called on the loop's thread, between two steps. May be called on any thread."""


@dataclass(slots=True, eq=False)
class Served:
    """A model in the loop."""

    model: Model
    runner: CarefulRunner
    retired: bool = False
    """To be freed after its last request."""
    drops: dict[str, DropAdapter] = field(default_factory=dict)
    """By the key of an adapter in use: whom to tell when its last request has ended."""

    @property
    def done(self) -> bool:
        return self.retired and self.model.scheduler.idle
