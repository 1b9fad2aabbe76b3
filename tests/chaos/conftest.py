"""The control plane of tests/control_plane, for a session of its own: here the operator is killed."""

from control_plane.conftest import cluster

__all__ = ["cluster"]
