"""Evidence that a count is more, or less, than its share of a total; and intervals for a share."""

from collections.abc import Callable, Iterable, Sequence
from math import exp, inf, log

MORE = (1.2, 1.5, 2.0, 3.0, 6.0, 20.0)
"""Odds ratios that a test for "too many" is averaged over."""
LESS = tuple(1 / odds for odds in MORE)
"""Odds ratios that a test for "fewer than" is averaged over."""
HALVINGS = 40


def cost(odds: Sequence[float], share: float) -> list[float]:
    """By odds ratio: what each of the total takes from the evidence (log of the generating
    function, per trial)."""
    return [log(1 - share + share * each) for each in odds]


def mixed(scores: Iterable[float], clumping: float = 1.0) -> float:
    """Log of the evidence: the mean of the likelihood ratios with these logs,
    each to the power 1 / clumping.

    A supermartingale to a power below one is one still (Jensen),
    so a `clumping` above one is never less careful.
    """
    logs = [score / clumping for score in scores]
    top = max(logs)
    return top + log(sum(exp(each - top) for each in logs) / len(logs))


def score(odds: Sequence[float], count: float, costs: Iterable[float]) -> list[float]:
    """Log likelihood ratios of a count, by odds ratio;
    `costs` are the sums of total times `cost`."""
    return [count * log(each) - taken for each, taken in zip(odds, costs, strict=True)]


def evidence(
    odds: Sequence[float], count: float, total: float, share: float, clumping: float = 1.0
) -> float:
    """Log evidence that `count` of `total` is more (odds MORE) or less (LESS) than `share`."""
    if share >= 1:
        return inf if odds is LESS and count < total else -inf
    if share <= 0:
        return inf if odds is MORE and count > 0 else -inf
    return mixed(score(odds, count, [total * each for each in cost(odds, share)]), clumping)


def low(count: float, total: float, error: float, clumping: float = 1.0) -> float:
    """Lower end for a share: at any look,
    the true share is below it with probability `error` at most."""
    if not count:
        return 0.0
    needed = log(1 / error)
    return _edge(
        0.0, count / total, lambda share: evidence(MORE, count, total, share, clumping) >= needed
    )


def high(count: float, total: float, error: float, clumping: float = 1.0) -> float:
    """Upper end for a share: at any look,
    the true share is above it with probability `error` at most."""
    if count >= total:
        return 1.0
    needed = log(1 / error)
    return _edge(
        1.0, count / total, lambda share: evidence(LESS, count, total, share, clumping) >= needed
    )


def _edge(outside: float, inside: float, refuted: Callable[[float], bool]) -> float:
    """The border between refuted and possible shares, on the refuted side."""
    for _ in range(HALVINGS):
        middle = (outside + inside) / 2
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside
