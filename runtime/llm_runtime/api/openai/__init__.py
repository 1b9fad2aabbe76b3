"""OpenAI's dialect, for its own clients and all that speak like them."""
