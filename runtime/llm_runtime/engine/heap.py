"""Memory that is freed goes back to the system, and memory that stays is not searched by the garbage collector."""

import ctypes
import gc

STEP_BYTES = 32 << 20
"""Whoever replaces weights one by one gives back what was freed after so many."""


def give_back() -> None:
    """Return what has been freed to the system, where the C library can (glibc).

    Transformers reads weights in threads, each with a heap of its own. What is freed there no other thread uses again:
    without this, a model whose layers are replaced one by one takes its weights' size twice.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def settle() -> None:
    """Take what is there now out of the garbage collector's rounds: it stays, and to look at it takes 0.1 s."""
    gc.collect()
    gc.freeze()


class Replaced:
    """Counts the weights that are replaced one by one, and gives back what they leave in steps of STEP_BYTES."""

    def __init__(self) -> None:
        self._freed_bytes = 0

    def add(self, freed_bytes: int) -> None:
        self._freed_bytes += freed_bytes
        if self._freed_bytes >= STEP_BYTES:
            self._freed_bytes = 0
            give_back()
