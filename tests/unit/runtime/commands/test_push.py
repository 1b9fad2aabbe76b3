"""`llm-runtime push` as its user sees it, where no server is needed;
the rest is tests/control_plane/test_push.py."""

from __future__ import annotations

import os
from errno import EACCES
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from llm_runtime.__main__ import cli
from llm_runtime.commands.publish import Published, Wish
from llm_runtime.commands.push import deployment_yaml
from unit.runtime.fetching.fakes import write_model


def push(folder: Path, *more: str, uri: str = "http://127.0.0.1:9") -> Result:
    environment = {"MLFLOW_TRACKING_URI": uri}
    return CliRunner().invoke(cli, ["push", str(folder), "--name", "bot", *more], env=environment)


def test_without_a_server_it_says_which_setting_is_missing(tmp_path: Path) -> None:
    pushed = push(write_model(tmp_path), uri="")
    assert pushed.exit_code == 1
    assert "pass --tracking-uri or set MLFLOW_TRACKING_URI" in pushed.stderr


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--tag", "team"), "the tag 'team' is not KEY=VALUE"),
        (("--alias", "latest"), "reserves the alias"),
        (("--base-model", "models:/base/1"), "--base-model is for adapters"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    pushed = push(write_model(tmp_path), *more)
    assert pushed.exit_code == 1
    assert told in pushed.stderr
    assert pushed.stdout == ""


@pytest.mark.parametrize("name", ["Support Bot", "7b.chat", "no", 'a "b"', "x" * 60, "ünï"])
def test_the_printed_yaml_names_what_was_pushed_whatever_its_name(name: str) -> None:
    text = deployment_yaml(Wish(name), Published(name, "3", "sha256:0", created=True))
    manifest = yaml.safe_load(text)
    assert manifest["spec"]["model"]["mlflow"] == {"name": name, "version": 3}
    made = manifest["metadata"]["name"]
    assert len(made) <= 40
    assert made[0].isalpha()
    assert made[-1].isalnum()


@pytest.mark.parametrize("verb", ["push", "fit"])
def test_a_file_that_may_not_be_opened_is_one_line(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """save_pretrained leaves weights that only their owner reads; the image's user is another."""
    folder = write_model(tmp_path)
    real = Path.open
    (weights,) = folder.glob("*.safetensors")

    def denied(
        file: Path, *arguments: Any, **more: Any
    ) -> Any:  # as root, whom no mode stops, would not be
        if file == weights:
            raise PermissionError(EACCES, "Permission denied", str(file))
        return real(file, *arguments, **more)

    monkeypatch.setattr(Path, "open", denied)
    told = push(folder) if verb == "push" else CliRunner().invoke(cli, ["fit", str(folder)])
    assert told.exit_code == {"push": 1, "fit": 2}[verb]
    assert f"{verb}: user {os.geteuid()} may not open {weights}: change its mode" in told.stderr
