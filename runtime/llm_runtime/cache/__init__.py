"""Answers that are given again: to equal deterministic requests, and to requests sent again under their own name."""
