"""hack/env: whose folder it takes, and what it says where it can't go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """hack/env and what it reads, with a Python whose venv module breaks off half way."""
    for name in (
        "hack/env",
        "hack/phase.sh",
        "requirements/bootstrap.txt",
        "requirements/dev.txt",
        "pyproject.toml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    begin = 'for venv; do :; done\nmkdir -p "$venv/bin"\ntouch "$venv/bin/python"'
    python.write_text(f'#!/bin/sh\n[ "$2" = venv ] || exit 0\n{begin}\nexit 1\n')
    python.chmod(0o755)
    return tmp_path


def run_env(checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHON": str(checkout / "python"),
        "LLM_OPERATOR_VENV": str(checkout / "venv"),
    }
    command = [str(checkout / "hack" / "env")]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )


def test_an_environment_that_was_broken_off_is_made_again(checkout: Path) -> None:
    # Before, Ctrl-C in the first seconds left a folder that the next run took for somebody else's
    # and refused.
    for _ in range(2):
        done = run_env(checkout)
        assert done.returncode == 1
        assert "env: failed: new" in done.stderr
        assert "was not made by hack/env" not in done.stderr


def test_a_folder_with_somebodys_files_is_refused_and_left_alone(checkout: Path) -> None:
    (checkout / "venv").mkdir()
    (checkout / "venv" / "thesis.tex").write_text("precious")
    done = run_env(checkout)
    assert done.returncode == 1
    assert "was not made by hack/env" in done.stderr
    assert [each.name for each in (checkout / "venv").iterdir()] == ["thesis.tex"]


def test_a_user_without_a_name_and_a_home_is_told(checkout: Path) -> None:
    # Before, uv kept its wheels, 6.4 GB, in a folder of the checkout.
    if os.getuid() != 0:
        pytest.skip("only root becomes a user without a name")
    unnamed = "import os, sys; os.setuid(54321); os.execv(sys.argv[1], sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to others
        moved = shutil.copytree(checkout, Path(folder) / "checkout")
        for opened in (moved, moved.parent):
            opened.chmod(0o755)
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(moved / "python")}
        command = [sys.executable, "-c", unnamed, str(moved / "hack" / "env")]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=50, check=False
        )
    assert done.returncode == 1
    assert (
        done.stderr
        == "env: User 54321 has no name on this machine and so no home folder: set HOME to a folder"
        " of yours.\n"
    )
