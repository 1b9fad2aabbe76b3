"""OpenAI's dialect, for its own clients and all that are compatible with it."""
