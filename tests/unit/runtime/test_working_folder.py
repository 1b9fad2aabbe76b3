"""Nothing is imported from the working folder: it may be a model's, or one that a server writes."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from llm_runtime import fetcher
from llm_runtime.commands import convert
from llm_runtime.engine import process

ROOT = Path(__file__).parents[3]
CHILDREN = {"engine": process.WORKER, "convert": convert.CHILD, "fetcher": fetcher.CHILD}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose json.py is imported in the place of Python's own, if it is looked for there."""
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working folder')\n")
    return tmp_path


def said(command: Sequence[str], folder: Path, **more: str) -> str:
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    given = {**os.environ, "PYTHONPATH": paths, **more}
    done = subprocess.run(
        command, cwd=folder, env=given, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_imports_nothing_from_there(model: Path, name: str) -> None:
    assert "imported from the working folder" not in said(CHILDREN[name], model)


@pytest.mark.parametrize("package", ["runtime", "operator"])
def test_nor_does_what_starts_in_an_image(model: Path, package: str) -> None:
    command = (sys.executable, "-m", f"llm_{package}", "--help")
    assert "imported from the working folder" in said(command, model)
    variables = dict(
        re.findall(r"\b(PYTHON\w+)=(\S+)", (ROOT / f"Dockerfile.{package}").read_text())
    )
    del variables["PYTHONPATH"]
    shown = said(command, model, **variables)
    assert "imported from the working folder" not in shown
    assert "usage" in shown.lower()
