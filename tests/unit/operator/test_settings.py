"""The configuration file: a wrong key is named, connections follow the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_operator.ports.registry import read_connection
from llm_operator.settings import Connections, SettingsError, load


def written(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("runtimeImage: a\npollSecond: 3", "pollSecond"),
        ("pollSeconds: 3", "runtimeImage"),
        (
            "runtimeImage: a\nconnections: {x: {trackingUri: 'mlflow:5000'}}",
            "connections.x.trackingUri",
        ),
        ("runtimeImage: a\nprometheus: {allowed: ['prometheus:9090']}", "prometheus.allowed.0"),
        (
            "runtimeImage: a\nfetchResources: {limits: {memory: much}}",
            "fetchResources.limits.memory",
        ),
        ("runtimeImage: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_name_of_the_culprit(
    tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("written_as", "manifest"),
    [
        ("", {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}),
        (
            "fetchResources: {requests: {memory: 1Gi}, limits: null}",
            {"requests": {"memory": "1Gi"}},
        ),
        ("fetchResources: {}", {}),
        ("fetchResources: {limits: {memory: 1e9}}", {"limits": {"memory": "1e9"}}),
    ],
)
def test_what_is_switched_off_stays_off(
    tmp_path: Path, written_as: str, manifest: dict[str, object]
) -> None:
    """helm writes null where somebody takes a default away; it used to come back."""
    found = load(written(tmp_path, f"runtimeImage: a\n{written_as}")).fetch_resources
    assert found is not None
    assert found.manifest() == manifest


def test_no_resources_at_all_are_allowed(tmp_path: Path) -> None:
    assert load(written(tmp_path, "runtimeImage: a\nfetchResources: null")).fetch_resources is None


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--config"):
        load(tmp_path / "absent.yaml")


def test_connections_follow_the_file_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    base = "runtimeImage: a\nconnections: {default: {trackingUri: 'http://%s'}}"
    file = written(tmp_path, base % "one")
    warned: list[str] = []
    connections = Connections(file, load(file), warned.append)
    written(tmp_path, base % "another")
    assert connections.current()["default"].tracking_uri == "http://another"
    written(tmp_path, "{")
    assert connections.current()["default"].tracking_uri == "http://another"
    assert len(warned) == 1


def test_credentials_are_read_at_every_use(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    text = (
        "runtimeImage: a\nconnections: {default: {trackingUri: 'http://a', credentialsFolder:"
        f" '{folder}'}}}}"
    )
    known = load(written(tmp_path, text)).connections
    assert read_connection("default", known).token == ""
    (folder / "token").write_text("t\n")
    assert read_connection("default", known).token == "t"
