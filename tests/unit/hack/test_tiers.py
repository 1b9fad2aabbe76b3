"""hack/test: what it prepares, and which of a tier's tests it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devstack import gateway, goprogram, prepare

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """hack/test with preparations that are done,
    and a Python that only writes down what it is to run."""
    for name in ("hack/test", "hack/phase.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("hack/packages", "hack/env"):
        script(tmp_path / name, "exit 0")
    script(tmp_path / "hack" / "kube" / "build", "echo /programs")
    script(tmp_path / ".venv" / "bin" / "python", 'shift; echo "$*" >>ran')
    return tmp_path


def script(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def run(checkout: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What came of it, and the modules that Python was to run with their arguments."""
    environment = {name: value for name, value in os.environ.items() if name != "LLM_OPERATOR_VENV"}
    command = [str(checkout / "hack" / "test"), *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    return done, (checkout / "ran").read_text().splitlines()


def test_a_path_narrows_its_tier(checkout: Path) -> None:
    # Before, it came beside the tier's own folder: all of the tier ran, whatever was chosen.
    done, ran = run(
        checkout, "control-plane", "tests/control_plane/test_crds.py::test_x", "-k", "operator"
    )
    assert done.returncode == 0
    assert ran[1:] == ["pytest tests/control_plane/test_crds.py::test_x -q -k operator"]
    assert "· chaos: no tests" in done.stdout


def test_without_a_path_all_folders_of_the_tier_run(checkout: Path) -> None:
    _, ran = run(checkout, "control-plane", "--deselect", "tests/chaos/test_a.py")
    assert ran[1:] == [f"pytest {each} -q --deselect tests/chaos/test_a.py" for each in
                       ("tests/control_plane", "tests/chaos")]  # fmt: skip


def test_a_path_above_the_folders_chooses_all(checkout: Path) -> None:
    _, ran = run(checkout, "unit", "tests/")
    assert ran[1].startswith("pytest tests/unit tests/test_repo.py -q -m not torch")


def test_a_choice_that_leaves_nothing_fails(checkout: Path) -> None:
    # A mistaken tier would otherwise pass without one test.
    done, ran = run(checkout, "unit", "tests/control_plane/test_crds.py")
    assert done.returncode == 5
    assert ran[1:] == []
    assert done.stderr.endswith(
        "test: no test of 'unit' was chosen by: tests/control_plane/test_crds.py\n"
    )


def test_programs_in_go_are_built_before_pytest_begins(checkout: Path) -> None:
    # Before, a fixture built them for minutes, and pytest kept to itself what was said meanwhile.
    _, ran = run(checkout, "control-plane")
    assert ran[0] == "devstack.prepare control-plane"


def test_a_program_that_can_not_be_had_is_told_and_the_others_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []

    def judges() -> None:
        raise goprogram.GoProgramError("no network")

    def crds() -> None:
        raise gateway.GatewayError("no such module")

    monkeypatch.setitem(
        prepare.NEEDED, "control-plane", (judges, crds, lambda: made.append("helm3"))
    )
    said: list[str] = []
    prepare.prepare("control-plane", said.append)
    assert made == ["helm3"]
    assert [line.split("\n")[0] for line in said] == ["test: no network", "test: no such module"]


def test_every_tier_says_what_it_needs() -> None:
    usage = subprocess.run(
        [str(ROOT / "hack" / "test"), "none"], capture_output=True, text=True, check=False
    )
    assert usage.returncode == 2
    assert set(usage.stderr.split("[")[1].split("]")[0].split("|")) == set(prepare.NEEDED)
