"""Which cluster is taken, and what is never removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devstack import cluster, control_plane
from devstack.ports import free_ports


def test_existing_context_is_taken_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert cluster.choose("auto", None) == "local"
    assert cluster.choose("auto", "mine") == "context"
    assert cluster.choose("kind", None) == "kind"


def test_context_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(cluster.ClusterError, match="name the context"):
        cluster.Cluster.start(tmp_path, provider="context")


def test_folder_with_other_files_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(cluster.ClusterError, match="holds no cluster"):
        cluster.clear(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_pid_that_the_system_gave_to_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "pids" / "etcd").write_text(str(os.getpid()))
    assert control_plane.living(tmp_path / "other") == []
    assert control_plane.living(tmp_path) == []


def test_attach_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(cluster.ClusterError, match="cluster up"):
        cluster.Cluster.attach(tmp_path)


def test_free_ports_differ() -> None:
    assert len(set(free_ports(5))) == 5
