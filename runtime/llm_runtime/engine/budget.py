"""How many prompt tokens may share a step with running streams,
so that those get their next token in time. Pure.

Prompts are computed in chunks beside the decoding streams (chunked prefill, Sarathi-Serve, 2024). A
large chunk delays every stream, a small one the first token of the new request. There is no fixed
chunk size. The budget measures how long a decoding step takes and how much each prompt token adds.
It sizes the chunk so that the step meets the goal for the time between two tokens.
"""

LEAST_TOKENS = 16
"""Smallest chunk, even when decoding alone takes longer than the goal: no prompt starves."""
_NEW_WEIGHT = 0.2
"""Weight of a new measurement in the moving averages;
small, so that one slow step does not swing the budget."""


class PrefillBudget:
    """Learns from observed steps how long a decoding step takes,
    and how much each prompt token adds."""

    def __init__(self, most_tokens: int, goal_seconds: float) -> None:
        """`goal_seconds` is the longest that a step should take while streams run."""
        self._most = most_tokens
        self._goal = goal_seconds
        self._decode_seconds: float | None = None
        self._token_seconds: float | None = None

    def tokens(self) -> int:
        """Number of prompt tokens for a step that also decodes."""
        if self._token_seconds is None:
            return min(self._most, 4 * LEAST_TOKENS)
        left = (self._goal - (self._decode_seconds or 0.0)) / self._token_seconds
        return min(max(int(left), LEAST_TOKENS), self._most)

    def observe(self, decode_tokens: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step: its tokens of each kind, and how long it took."""
        if not prompt_tokens:
            self._decode_seconds = _mean(self._decode_seconds, seconds)
        elif prompt_tokens >= LEAST_TOKENS:
            decode_seconds = (self._decode_seconds or 0.0) if decode_tokens else 0.0
            self._token_seconds = _mean(
                self._token_seconds, max(seconds - decode_seconds, 1e-6) / prompt_tokens
            )


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW_WEIGHT * (new - old)
