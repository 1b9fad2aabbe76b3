"""Pure planning: what was observed → what should be. No I/O, no clock, no chance."""

from llm_operator.plans.llmdeployment import (
    CHILD_KINDS,
    Applied,
    after_apply,
    deployment,
    recorded,
    replaced,
)

__all__ = ["CHILD_KINDS", "Applied", "after_apply", "deployment", "recorded", "replaced"]
