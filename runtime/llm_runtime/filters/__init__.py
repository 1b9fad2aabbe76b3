"""Content filters: personal data in prompts and answers, and control characters in answers."""

from llm_runtime.filters.filters import Filters
from llm_runtime.filters.mask import Mask

__all__ = ["Filters", "Mask"]
