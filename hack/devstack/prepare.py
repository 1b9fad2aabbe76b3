"""What tests ask of Go, built before pytest begins,
which would swallow what is said during a build of minutes.

`python -m devstack.prepare TIER` is for hack/test.
What can't be had is said and left to the tests that need it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from devstack import gateway, goprogram, helm3, judges
from devstack.waits import complain

UNIT: tuple[Callable[[], Any], ...] = (judges.built,)
CONTROL_PLANE = (judges.built, helm3.helm3, gateway.http_route_crd)
NEEDED = {"unit": UNIT, "control-plane": CONTROL_PLANE, "e2e": (), "all": CONTROL_PLANE}


def prepare(tier: str, say: Callable[[str], None] = complain) -> None:
    """Have everything that the tests of `tier` ask of Go, as far as it can be had."""
    for have in NEEDED[tier]:
        try:
            have()
        except (goprogram.GoProgramError, gateway.GatewayError) as error:
            say(f"test: {error}\ntest: the tests that need it will fail.")


if __name__ == "__main__":
    prepare(sys.argv[1])
