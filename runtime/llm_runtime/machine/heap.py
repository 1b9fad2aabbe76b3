"""Returns freed memory to the system, which the C library would keep, and takes lasting objects
out of the garbage collector's passes."""

import ctypes
import gc

STEP_BYTES = 32 << 20
"""Freed bytes after which `Replaced` returns them to the system."""


def give_back() -> None:
    """Return freed memory to the system, if the C library can (glibc's malloc_trim).

    Transformers reads weights in several threads, and glibc gives each thread its own arena. Memory
    freed in one arena is not reused by another. Without this, replacing a model's layers one by one
    would take twice the weights' size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def freeze() -> None:
    """Take all objects of now out of the garbage collector's passes.
    They last as long as the process, and each pass over them takes 0.1 s. What the start used
    besides goes back to the system."""
    gc.collect()
    give_back()
    gc.freeze()


class Replaced:
    """Counts the bytes of replaced weights,
    and returns freed memory to the system every STEP_BYTES."""

    def __init__(self) -> None:
        self._freed_bytes = 0

    def add(self, freed_bytes: int) -> None:
        self._freed_bytes += freed_bytes
        if self._freed_bytes >= STEP_BYTES:
            self._freed_bytes = 0
            give_back()
