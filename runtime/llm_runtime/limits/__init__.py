"""Limits: requests and tokens of a minute and of a month, and concurrent requests, for each caller.

`bucket`, `month`, `slots` and `exchange` compute and know no clock; `budget` and `lease` are one
limit of one caller, alone or shared; `broker` asks a store (`shared`: SQL, `redis`) for many leases
at once; `account` is one caller, and `limiter` the door for all. docs/limits.md says what holds,
and within which bounds.
"""

from llm_runtime.limits.limiter import Admission, Limiter
from llm_runtime.limits.standing import LimitStanding, Standing

__all__ = ["Admission", "LimitStanding", "Limiter", "Standing"]
