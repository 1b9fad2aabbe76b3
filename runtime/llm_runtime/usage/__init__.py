"""Usage accounting: a row for each request, where rows are written, and reports."""

from llm_runtime.usage.rows import LoggedUsage, Outcome, UsageLog, UsageRow

__all__ = ["LoggedUsage", "Outcome", "UsageLog", "UsageRow"]
