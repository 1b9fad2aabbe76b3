"""lm-evaluation-harness against the runtime, beside its own Transformers backend."""
