"""Continuous batching over plain Transformers forwards.

`scheduler` decides, `runner` computes, `loop` runs both on one thread, `recovery` isolates what
fails; `sequence` is the noun they share. `client` is all of this as the HTTP process sees it,
through `process` (or `local`, for tests).
"""
