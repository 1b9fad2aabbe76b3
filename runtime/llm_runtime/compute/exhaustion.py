"""Memory that runs out in a step, told apart from other errors of torch."""

from collections.abc import Callable
from typing import TypeVar

import torch

from llm_runtime.machine.memory import StepOutOfMemory

T = TypeVar("T")


def in_memory(compute: Callable[[], T]) -> T:
    """What `compute` returns. Raises StepOutOfMemory where memory ran out: fewer tokens may fit."""
    try:
        return compute()
    except (
        RuntimeError
    ) as error:  # torch.OutOfMemoryError is one. On a CPU, only the message shows it.
        message = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in message:
            raise
    # Outside of `except`, so that the exception's frames no longer hold the step's tensors.
    torch.cuda.empty_cache()
    raise StepOutOfMemory(message)
