"""LoRA adapters that come and go while a server runs:
a mounted file says which, and nothing restarts."""

from llm_runtime.adapters.delivery import Delivered
from llm_runtime.adapters.file import NOTHING, AdapterList
from llm_runtime.adapters.keeper import Adapters, Fetch

__all__ = ["NOTHING", "AdapterList", "Adapters", "Delivered", "Fetch"]
