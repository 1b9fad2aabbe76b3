"""Bounds for the mean of scores, and of differences of pairs. Pure.

Waudby-Smith, Ramdas 2024, "Estimating means of bounded random variables by betting" (JRSS B 86:1),
section 4: whoever bets that the mean is above m, with stakes that depend on earlier scores alone,
ever multiplies the capital by 1 / a with a probability of at most `a` if it is not (Ville). The
lower bound is the largest m at which the capital got there. It holds for scores of any distribution
in [0, 1], for few of them, for equal ones, and wherever one stops.
"""

from collections.abc import Sequence
from math import log, log1p, sqrt

STAKE = 0.9
"""Share of the capital that is at stake at most."""
HALVINGS = 30
"""Number of halvings of the interval in which the bound is looked for: to a billionth."""


def lower(scores: Sequence[float], alpha: float) -> float:
    """A bound that the true mean of scores in [0, 1]
    is below with a probability of at most `alpha`.

    The order of the scores must not depend on them.
    """
    bets = _bets(scores, alpha)
    low = 0.0
    high = 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _most_capital(scores, bets, middle) >= log(1 / alpha):
            low = middle
        else:
            high = middle
    return low


def upper(scores: Sequence[float], alpha: float) -> float:
    """A bound that the true mean of scores in [0, 1] is above with a probability of at most
    `alpha`."""
    return 1 - lower([1 - score for score in scores], alpha)


def _bets(scores: Sequence[float], alpha: float) -> list[float]:
    """For each score the stake that would win most if the rest were as those before it."""
    bets = []
    total = 0.5
    spread = 0.25
    for seen, score in enumerate(scores, start=1):
        bets.append(sqrt(2 * log(1 / alpha) * seen / (len(scores) * spread)))
        total += score
        mean = total / (seen + 1)
        spread += (score - mean) ** 2
    return bets


def _most_capital(scores: Sequence[float], bets: Sequence[float], mean: float) -> float:
    """Log of the largest capital on the way, of bets that the true mean is above `mean`.
    It falls with `mean`."""
    capital = 0.0
    most = 0.0
    cap = STAKE / mean
    for score, bet in zip(scores, bets, strict=True):
        capital += log1p(min(bet, cap) * (score - mean))
        most = max(most, capital)
    return most


def lower_difference(differences: Sequence[float], alpha: float) -> float:
    """`lower` for differences of two scores, in [-1, 1]."""
    return 2 * lower([(each + 1) / 2 for each in differences], alpha) - 1


def upper_difference(differences: Sequence[float], alpha: float) -> float:
    """`upper` for differences of two scores, in [-1, 1]."""
    return -lower_difference([-each for each in differences], alpha)
