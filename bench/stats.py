"""Figures from samples. Pure."""

import math
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` % of all do not
    exceed."""
    if not values:
        return math.nan
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def median(values: Sequence[float]) -> float:
    """The median; NaN without values."""
    return statistics.median(values) if values else math.nan


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value / reference`; None if one of them was not measured."""
    if (
        value is None
        or reference is None
        or not reference
        or math.isnan(value)
        or math.isnan(reference)
    ):
        return None
    return value / reference


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round to `digits` significant digits; None for values that JSON can't represent."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
