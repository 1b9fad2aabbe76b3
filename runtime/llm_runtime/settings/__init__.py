"""The configuration of a process: its file, `.env` and the environment."""

from llm_runtime.settings.environment import Environment, forget_secrets, private_values
from llm_runtime.settings.reading import Settings, SettingsInvalid, Storage, load, storage

__all__ = [
    "Environment",
    "Settings",
    "SettingsInvalid",
    "Storage",
    "forget_secrets",
    "load",
    "private_values",
    "storage",
]
