"""Continuous batching over plain Transformers forwards.

`scheduler` decides, `runner` computes, `loop` connects both to asyncio; `sequence` is the noun they share.
"""
