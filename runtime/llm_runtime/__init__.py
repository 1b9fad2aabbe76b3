"""The runtime: an OpenAI-compatible server around a continuously batched Transformers engine."""
