"""A model in memory and its codec. Free of torch, so that every module may import it."""

from dataclasses import dataclass
from typing import Any

from llm_runtime.text.codec import Codec


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model and its codec.
    `max_positions` is the length that the model was made for, in tokens."""

    model: Any
    codec: Codec
    device: str
    dtype: str
    max_positions: int | None
    parameters: int
    peak_bytes: int = 0
    """Peak memory of this process that loading added, without mapped files."""
    quantised: bool = False
    """Whether linear weights are integers, so that products may round activations to 8 bits."""
