"""What the clients ask: mixed lengths, the same for every server, from a seed. Pure."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

PROMPT_TOKENS = (16, 200)
ANSWER_TOKENS = (16, 128)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a text of `prompt_tokens` tokens, to continue by exactly `max_tokens`.
    `model` None: the base."""

    prompt: str
    prompt_tokens: int
    max_tokens: int
    model: str | None = None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def mixed(words: Sequence[str], requests: int, seed: int) -> list[Ask]:
    """Prompts of 16 to 200 tokens, answers of 16 to 128, both uniform.
    Each of `words` is one token after a space."""
    chance = random.Random(seed)
    return [
        _ask(words, chance, chance.randint(*PROMPT_TOKENS), chance.randint(*ANSWER_TOKENS))
        for _ in range(requests)
    ]


def shared_prefixes(
    words: Sequence[str],
    groups: int,
    followers: int,
    prefix_tokens: int,
    seed: int,
    tail_tokens: int = 16,
) -> list[list[Ask]]:
    """Requests with `groups` different prefixes:
    for each, one request that is the first, and `followers` after it."""
    chance = random.Random(seed)
    result = []
    for _ in range(groups):
        prefix = text(words, chance, prefix_tokens)
        tails = [text(words, chance, tail_tokens) for _ in range(1 + followers)]
        result.append([Ask(prefix + tail, prefix_tokens + tail_tokens, 4) for tail in tails])
    return result


def spread_over(asks: Sequence[Ask], models: Sequence[str]) -> list[Ask]:
    """The same requests, to `models` in turn."""
    return [replace(ask, model=models[index % len(models)]) for index, ask in enumerate(asks)]


def answer_tokens(asks: Sequence[Ask]) -> int:
    """Tokens that all answers have together."""
    return sum(ask.max_tokens for ask in asks)


def text(words: Sequence[str], chance: random.Random, tokens: int) -> str:
    """`tokens` words, each after a space."""
    return "".join(f" {chance.choice(words)}" for _ in range(tokens))


def _ask(words: Sequence[str], chance: random.Random, prompt_tokens: int, max_tokens: int) -> Ask:
    return Ask(text(words, chance, prompt_tokens), prompt_tokens, max_tokens)
