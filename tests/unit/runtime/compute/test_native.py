"""The image compiles the kernels in a stage that has only the files that they are made from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[4]


def test_the_images_stage_of_kernels_has_all_that_they_import(tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile.runtime").read_text().replace("\\\n", " ")
    stage = dockerfile.partition(" AS kernels\n")[2].partition("\nFROM ")[0]
    for line in re.findall(r"^COPY (.*)$", stage, re.MULTILINE):
        *sources, folder = line.split()
        target = tmp_path / folder.removeprefix("/opt/app/")
        target.mkdir(parents=True, exist_ok=True)
        for source in sources:
            shutil.copy(ROOT / source, target)
    done = subprocess.run(
        (sys.executable, "-P", "-c", "import llm_runtime.compute.native as found; print(found)"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path) in done.stdout, done.stderr
