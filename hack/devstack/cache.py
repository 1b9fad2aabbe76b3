"""Where on this machine built and downloaded things are kept from one run to the next."""

import os
from pathlib import Path

CACHE = Path(
    os.environ.get("LLM_OPERATOR_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-operator"
)
