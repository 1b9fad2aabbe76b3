"""A minute's limit as a leaky bucket: what was used drains at limit / 60 per second.
Pure: time is an argument.

This is the token bucket of traffic shaping (Turner, 1986), turned over: it keeps the used amount
instead of the tokens left. A new bucket is zero whatever the limit is, and a changed limit applies
at once without forgetting what was used.
"""

MINUTE_SECONDS = 60.0
EPSILON = 1e-6
"""Tolerance, so that rounding does not refuse a request that waited exactly as long as it was
told."""


class LeakyBucket:
    """Amount used of a minute's limit that has not drained:
    `used` as of `at`, in seconds on the caller's clock."""

    __slots__ = ("at", "used")

    def __init__(self, used: float = 0.0, at: float = 0.0) -> None:
        self.used = used
        self.at = at

    def drain(self, limit: float, now: float) -> float:
        """The used amount at `now`. A clock that goes back drains nothing."""
        if now > self.at:
            left = self.used - (now - self.at) * limit / MINUTE_SECONDS
            self.used = left if left > 0.0 else 0.0
            self.at = now
        return self.used

    def room(self, limit: float, now: float) -> float:
        """Amount that may be taken now; negative after a request used more than it had reserved."""
        return limit - self.drain(limit, now)

    def take(self, amount: float) -> None:
        self.used += amount

    def give(self, amount: float) -> None:
        """Return `amount`. A negative amount takes more, even beyond the limit."""
        self.used = max(0.0, self.used - amount)

    def wait_seconds(self, limit: float, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken, if nobody else takes any."""
        return max(0.0, (amount - self.room(limit, now)) * MINUTE_SECONDS / limit)

    def full_seconds(self, limit: float, now: float) -> float:
        """Seconds until the bucket has drained."""
        return self.drain(limit, now) * MINUTE_SECONDS / limit
