"""hack/test: what it prepares, and which of a tier's tests it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devstack import gateway, goprogram, prepare
from waiting import eventually

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


def test_clusters_are_tested_beside_the_unit_tests_and_a_failure_of_either_is_one(
    checkout: Path,
) -> None:
    # Each waits for the other: one after the other they would wait for ever.
    script(
        checkout / ".venv" / "bin" / "python",
        """shift; echo "$*" >>ran
case "$*" in
  *tests/chaos*) echo "of chaos"; touch clusters; exit 1 ;;
  *"not torch"*) for _ in 1 2 3 4 5 6 7 8 9 10; do [ -f clusters ] && exit 0; sleep 1; done; exit 1 ;;
esac""",
    )
    done, ran = run(checkout, "all")
    assert done.returncode == 1
    assert ran[-1] == "pytest tests/e2e -q"
    assert len(ran) == 6
    assert "of chaos" in done.stdout
    told = [line.split(":")[0] for line in done.stdout.splitlines() if line[:1] in "✓✗·"]
    ends = ["✓ unit", "✓ unit with torch", "✓ control plane", "✗ chaos", "✓ end to end"]
    assert [line for line in told if line] == ends


def test_an_end_is_the_end_of_what_runs_beside(checkout: Path) -> None:
    script(
        checkout / ".venv" / "bin" / "python",
        """shift
case "$*" in
  *control_plane*) trap 'touch ended; exit 0' TERM; touch begun; for _ in $(seq 300); do sleep 0.1; done ;;
  *"not torch"*) for _ in $(seq 100); do [ -f begun ] && break; sleep 0.1; done; kill -TERM $PPID ;;
esac""",
    )
    (checkout / "ran").touch()
    done, _ = run(checkout, "all")
    assert done.returncode != 0
    eventually((checkout / "ended").exists, 10)


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
