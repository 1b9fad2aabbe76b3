"""What requests used: the rows, where they go, and the reports made of them."""

from llm_runtime.usage.rows import LoggedUsage, Outcome, UsageLog, UsageRow

__all__ = ["LoggedUsage", "Outcome", "UsageLog", "UsageRow"]
