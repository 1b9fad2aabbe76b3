"""Reads and judges what tenants write, in a process of its own that is bounded in time and memory.

The operator has one event loop for all: a schema, a pattern or a YAML document that takes for ever
takes itself alone.

children  starts the processes, a few at a time
__main__  what such a process does
smoke     smoke prompts: reading them, and judging answers

The process imports `smoke` and nothing else of the operator, as starting is most of what it costs:
a roll-out needs one for each pod of a candidate.
"""
