"""A short text that shows which inputs of a layer are large, for weights of 4 bits.

Tokens at random would do worse: what comes to a layer depends on language. Some prose, talk, code,
numbers and other languages are enough, as only mean squares are taken.
"""

from tokenizers import Tokenizer

TEXT = """\
The town lies on a river between low hills. In the ninth century there was a market here, and later a
bridge, a mill and three churches; today most people work in the port or at the university.

User: Could you explain why the sky is blue?
Assistant: Sunlight is scattered by the air. Blue light has a shorter wave, so more of it is scattered
than of red light, and it reaches us from every side.

Dear Ms Keller,
thank you for your letter of 4 March. Your order no. 20817 (12 chairs, EUR 1,149.50) has been sent today.

def mean(values: list[float]) -> float:
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

{"name": "sensor-7", "temperature": 21.4, "tags": ["north", "roof"], "active": true}

1. Wash the rice. 2. Boil it for twelve minutes. 3. Add salt, oil and a little lemon.

Das Buch liegt auf dem Tisch. ¿Dónde está la estación? Il fait beau aujourd'hui. 今天天气很好。
"""


MOST_TOKENS = 384


def tokens(tokenizer: Tokenizer, vocabulary_size: int, most: int = 0) -> list[int]:
    """The text in the model's tokens, no more than `most` (0: as many as it wants), without those
    that the model has no embedding for."""
    ids = tokenizer.encode(TEXT).ids
    return [token for token in ids if token < vocabulary_size][
        : min(MOST_TOKENS, most or MOST_TOKENS)
    ]
