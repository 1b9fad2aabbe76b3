"""Anthropic's dialect: the Messages API, for its own clients and all that speak as they do."""
