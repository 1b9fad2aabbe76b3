"""What loading gives: a model in memory and its codec. Free of torch, so that all who use it may name it."""

from dataclasses import dataclass
from typing import Any

from llm_runtime.models.codec import Codec


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run and its codec. `max_positions` is what the model was made for, in tokens."""

    model: Any
    codec: Codec
    device: str
    dtype: str
    max_positions: int | None
    parameters: int
    peak_bytes: int = 0
    """Memory of this process that loading took at once, mapped files not counted."""
