"""What must not pass: personal data in prompts, personal data and control characters in answers."""

from llm_runtime.filters.filters import Filters
from llm_runtime.filters.mask import Mask

__all__ = ["Filters", "Mask"]
