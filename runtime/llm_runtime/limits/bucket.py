"""A minute's limit as a bucket that drains: what was used goes away at limit/60 a second. Pure: time is an argument.

A token bucket seen from below: instead of the level it keeps what is missing from a full bucket. A new bucket is then
zero, whatever the limit, and a changed limit applies at once without forgetting what was used.
"""

MINUTE_SECONDS = 60.0
EPSILON = 1e-6
"""Rounding of sums of floats must not refuse the request that waited exactly as long as it was told."""


class Bucket:
    """What was used of a minute's limit and has not drained. `at` is when `used` was right, on the caller's clock."""

    __slots__ = ("at", "used")

    def __init__(self, used: float = 0.0, at: float = 0.0) -> None:
        self.used, self.at = used, at

    def drain(self, limit: float, now: float) -> float:
        """What is still used at `now`. A clock that goes back drains nothing."""
        if now > self.at:
            left = self.used - (now - self.at) * limit / MINUTE_SECONDS
            self.used, self.at = (left if left > 0.0 else 0.0), now
        return self.used

    def room(self, limit: float, now: float) -> float:
        """How much may be taken at once; negative after more was settled than reserved."""
        return limit - self.drain(limit, now)

    def take(self, amount: float) -> None:
        self.used += amount

    def give(self, amount: float) -> None:
        """Put back, up to full; a negative amount takes more, beyond empty if need be."""
        self.used = max(0.0, self.used - amount)

    def wait_seconds(self, limit: float, now: float, amount: float) -> float:
        """Until `amount` may be taken, if nobody else takes any."""
        return max(0.0, (amount - self.room(limit, now)) * MINUTE_SECONDS / limit)

    def full_seconds(self, limit: float, now: float) -> float:
        """Until nothing counts as used any more."""
        return self.drain(limit, now) * MINUTE_SECONDS / limit
