"""The control plane of tests/control_plane,
for a session of its own: here the operator is killed."""

from typing import Any

import pytest

from control_plane.conftest import cluster
from control_plane.operator_fixtures import SHORT_LEASE

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def lease() -> dict[str, Any]:
    """Who comes after a killed operator waits for its Lease to end."""
    return SHORT_LEASE
