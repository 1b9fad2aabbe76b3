"""Guesses of a sequence's next tokens, which one step can check together. Pure.

Text repeats itself: an answer quotes its prompt, code repeats names, JSON its keys. What followed the
last few tokens when they stood there before is a good guess of what follows now (prompt lookup
decoding, Saxena 2023). A step that gets the guess as further rows computes what the model would say
after each of them. Tokens are chosen as ever, one after the other, and the guess only decides how
many of them a step yields: so answers are the same, greedy or sampled (speculative decoding,
Leviathan et al. 2023, whose test is this one where the guess is a single token).

A guess costs rows. `Drafter` learns what a row costs and how often its guesses are right, and makes
none that do not pay.
"""

import math
from array import array
from collections.abc import Iterable
from dataclasses import replace

from llm_runtime.engine.sequence import Sampled, Sequence

NGRAMS = (4, 3, 2)
"""Lengths of the end of a text that is looked up, the longest first."""
MOST_TOKENS = 12
"""Longest guess."""
_ITEM = array("I").itemsize
_PRIOR = 0.5
"""Probability that a guessed token is right, before anything is known of a sequence."""
_NEW_WEIGHT = 0.1
"""Weight of a new guess in what is known of a sequence's guesses."""
_HOPE = 0.01
"""How far the probability returns to _PRIOR at each guess that was not worth a try."""


def confirmed(guesses: Iterable[tuple[int, ...]], sampled: Iterable[Sampled]) -> list[Sampled]:
    """What each span yields: the token after its known ones, and a further one for each guessed
    token that is the one chosen. `sampled` has the entries of all spans in a row: for each one more
    than its guess has tokens."""
    rows = iter(sampled)
    found = []
    for guess in guesses:
        first, *others = (next(rows) for _ in (0, *guess))
        right = 0
        for token, chosen in zip(guess, (first, *others), strict=False):
            if chosen.token_id != token:
                break
            right += 1
        found.append(replace(first, more=tuple(others[:right])) if right else first)
    return found


class Drafter:
    """Guesses for all running sequences."""

    def __init__(self) -> None:
        self._texts: dict[Sequence, _Text] = {}
        self._cost = StepCost()
        self.guessed = self.right = 0
        """Tokens so far."""

    def guess(self, sequences: Iterable[Sequence], room: int) -> dict[Sequence, tuple[int, ...]]:
        """What each of the decoding `sequences` may go on with; at most `room` tokens in all."""
        decoding = list(sequences)
        price = self._cost.price(len(decoding))
        guesses = {}
        for sequence in decoding if price < 1 else ():
            if sequence.matcher is not None or sequence.counts is not None:
                continue  # Each token changes what the next one may be.
            text = self._texts.setdefault(sequence, _Text())
            left = sequence.request.sampling.max_tokens - sequence.output_length - 1
            guess = text.guess(sequence.token_ids, price, min(left, room))
            if guess:
                guesses[sequence] = guess
                room -= len(guess)
        return guesses

    def learn(self, sequence: Sequence, guessed: int, right: int) -> None:
        """Hear how many tokens of a guess were right."""
        self.guessed += guessed
        self.right += right
        self._texts[sequence].learn(guessed, right)

    def observe(self, rows: int, seconds: float) -> None:
        """Hear how long a step took that read no prompts."""
        self._cost.observe(rows, seconds)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._texts.pop(sequence, None)


class _Text:
    """One sequence's tokens, as bytes that can be searched, and how well its guesses do."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._right = _PRIOR

    def guess(self, token_ids: list[int], price: float, most: int) -> tuple[int, ...]:
        self._bytes += array("I", token_ids[len(self._bytes) // _ITEM :]).tobytes()
        most = min(most, MOST_TOKENS)
        place = self._place() if most > 0 else None
        if place is None:
            return ()
        worth = int(math.log(price) / math.log(self._right))
        if not worth:
            self._right += _HOPE * (_PRIOR - self._right)
        return tuple(token_ids[place : place + min(worth, most)])

    def learn(self, guessed: int, right: int) -> None:
        for number in range(min(right + 1, guessed)):
            self._right += _NEW_WEIGHT * ((number < right) - self._right)
        # Neither certain nor impossible, as its logarithm divides.
        self._right = min(max(self._right, 0.01), 0.99)

    def _place(self) -> int | None:
        """Where the text goes on after the last place that is like its end."""
        for length in NGRAMS:
            end = self._bytes[-length * _ITEM :]
            before = len(self._bytes) - _ITEM
            while len(end) == length * _ITEM and (found := self._bytes.rfind(end, 0, before)) >= 0:
                if found % _ITEM == 0:
                    return found // _ITEM + length
                before = found + len(end) - 1
        return None


class StepCost:
    """What a further row costs a step, by a line through the steps so far:
    seconds = start + slope * rows."""

    _FORGET = 0.98
    _ROWS_A_STEP = 8.0
    """While all steps had equally many rows: so many more are taken to cost as much as a step."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        self._weight = self._FORGET * self._weight + 1
        self._rows = self._FORGET * self._rows + rows
        self._seconds = self._FORGET * self._seconds + seconds
        self._squares = self._FORGET * self._squares + rows * rows
        self._products = self._FORGET * self._products + rows * seconds

    def price(self, sequences: int) -> float:
        """How probable a guessed token must be to pay for its row, when so many sequences decode:
        what a row costs, over what a token costs now. 1 or more: none pays."""
        if not self._weight or not sequences:
            return 1 / self._ROWS_A_STEP
        rows = self._rows / self._weight
        seconds = self._seconds / self._weight
        spread = self._squares / self._weight - rows * rows
        if spread < 0.01 * rows * rows:
            slope = seconds / (rows + self._ROWS_A_STEP)
        else:
            slope = (self._products / self._weight - rows * seconds) / spread
        step = seconds + slope * (sequences - rows)
        if step <= 0:
            return 1.0
        return max(slope * sequences / step, 0.02)
