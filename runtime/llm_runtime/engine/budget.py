"""How many prompt tokens may share a step with running streams, so that those get their next token in time. Pure."""

LEAST_TOKENS = 16
"""Prompts advance by at least so much even when decoding alone takes longer than the goal: nobody starves."""
_NEW_WEIGHT = 0.2
"""Of a new measurement in the running means: a busy machine should not swing the budget with every step."""


class PrefillBudget:
    """Learns two figures from the steps it is shown: the time of a decoding step, and of one prompt token more."""

    def __init__(self, most_tokens: int, goal_seconds: float) -> None:
        """`goal_seconds` is what a step should take at most while anybody waits for its next token."""
        self._most, self._goal = most_tokens, goal_seconds
        self._decode_seconds: float | None = None
        self._token_seconds: float | None = None

    def tokens(self) -> int:
        """Prompt tokens for a step that also decodes."""
        if self._token_seconds is None:
            return min(self._most, 4 * LEAST_TOKENS)
        left = (self._goal - (self._decode_seconds or 0.0)) / self._token_seconds
        return min(max(int(left), LEAST_TOKENS), self._most)

    def observe(self, decode_tokens: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step of so many tokens of each kind."""
        if not prompt_tokens:
            self._decode_seconds = _mean(self._decode_seconds, seconds)
        elif prompt_tokens >= LEAST_TOKENS:
            decode_seconds = (self._decode_seconds or 0.0) if decode_tokens else 0.0
            self._token_seconds = _mean(self._token_seconds, max(seconds - decode_seconds, 1e-6) / prompt_tokens)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW_WEIGHT * (new - old)
