"""Log probabilities as parallel lists, the older form of OpenAI's API; and those of prompts, in this
form and in that of vLLM's server."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from llm_runtime.api.openai.common import logprob
from llm_runtime.api.spelled import Spelled
from llm_runtime.request import PromptLogprobs, TextCodec, TokenEvent, TopLogprob


class Lists:
    """Log probabilities of one choice. `text_offset` counts characters of its text."""

    def __init__(self, tokens: Spelled, offset: int = 0) -> None:
        """`offset`: characters of the text before the first token."""
        self._tokens = tokens
        self._offset = offset

    def take(self, events: Iterable[TokenEvent], *, ended: bool) -> dict[str, Any]:
        """The lists of the next events of the choice; `ended`: there are no more."""
        found = self._tokens.take(events, ended=ended)
        *offsets, self._offset = accumulate(
            (len(each.text) for each in found), initial=self._offset
        )
        return {
            "tokens": [each.text or each.name for each in found],
            "token_logprobs": [logprob(each.event.logprob) for each in found],
            "top_logprobs": [_rivals(each.event) for each in found],
            "text_offset": offsets,
        }


def of_prompt(scores: PromptLogprobs, top: int, codec: TextCodec) -> dict[str, Any]:
    """The lists of a prompt, an entry for each of its tokens: special ones by their names.
    The first token has no log probability."""
    lists = Lists(Spelled(codec.detokenizer(), codec.token_text))
    found = lists.take(_events(scores, top, codec), ended=True)
    found["token_logprobs"][0] = found["top_logprobs"][0] = None
    return found


def by_token_id(
    scores: PromptLogprobs, top: int, codec: TextCodec
) -> list[dict[str, dict[str, Any]] | None]:
    """As in vLLM's server: for each token of a prompt but the first itself and the `top` likeliest
    ones, by their ids."""
    found: list[dict[str, dict[str, Any]] | None] = [None]
    for token_id, value, rank, rivals in scores:
        ranked = {rival: (place, other) for place, (rival, other) in enumerate(rivals[:top], 1)}
        found.append(
            {
                str(one): {
                    "logprob": logprob(own),
                    "rank": place,
                    "decoded_token": codec.token_text(one),
                }
                for one, (place, own) in {token_id: (rank, value), **ranked}.items()
            }
        )
    return found


def _events(scores: PromptLogprobs, top: int, codec: TextCodec) -> Iterator[TokenEvent]:
    """The tokens of a prompt, as if they had been generated."""
    yield TokenEvent(scores.token_ids[0], "")
    for token_id, value, _, rivals in scores:
        named = (TopLogprob(rival, codec.token_text(rival), other) for rival, other in rivals[:top])
        yield TokenEvent(token_id, "", value, tuple(named))


def _rivals(event: TokenEvent) -> dict[str, float]:
    # Tokens that are parts of characters may have the same text. The likeliest one keeps it.
    return {top.text: logprob(top.logprob) for top in reversed(event.top_logprobs)}
