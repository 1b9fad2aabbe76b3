"""Months of UTC. Pure: the moment is an argument, in seconds since 1970."""

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Month:
    """`name` as `2026-11`; `end` is the first moment of the next month, in seconds since 1970."""

    name: str
    end: float


def month_of(moment: float) -> Month:
    """The month that `moment` lies in."""
    at = datetime.fromtimestamp(moment, UTC)
    year, month = (at.year, at.month + 1) if at.month < 12 else (at.year + 1, 1)
    return Month(f"{at:%Y-%m}", datetime(year, month, 1, tzinfo=UTC).timestamp())


class Calendar:
    """The current month. It never goes back:
    a clock set back over midnight must not open last month's quota again."""

    def __init__(self, moment: float) -> None:
        self.month = month_of(moment)

    def at(self, moment: float) -> Month:
        if moment >= self.month.end:
            self.month = month_of(moment)
        return self.month
