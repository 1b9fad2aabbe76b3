"""Cached answers: for equal deterministic requests,
and for requests repeated with the same idempotency key."""
