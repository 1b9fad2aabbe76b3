"""What a cluster of the demo and of the tests keeps, and where."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from devstack.cluster import Cluster

pytestmark = pytest.mark.control_plane


def test_kubectl_keeps_what_it_learns_in_the_clusters_folder(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Before, each run left a folder of its own below ~/.kube/cache.
    environment = {**cluster.environment(), "HOME": str(tmp_path)}
    subprocess.run(
        ["kubectl", "get", "namespaces"], env=environment, check=True, capture_output=True
    )
    assert list(tmp_path.iterdir()) == []
    assert (cluster.folder / "kubectl-cache").is_dir()
