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
V3 = "avx2 fma bmi2"
V4 = f"{V3} avx512f avx512bw avx512dq avx512cd avx512vl"


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


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (f"{V4} avx512_vnni avx_vnni", "x86-64-v4+avx512vnni"),
        (V4, "x86-64-v4"),
        (f"{V3} avx_vnni", "x86-64-v3+avxvnni"),
        (V3, "x86-64-v3"),
        ("sse4_2", None),
    ],
)
def test_an_image_loads_the_kernels_of_its_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, level: str | None
) -> None:
    from llm_runtime.compute import native

    monkeypatch.setattr(native, "BUILT", tmp_path)
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(flags.split()))
    for built in native.LEVELS:
        (tmp_path / f"kernels-{built}.so").touch()
    found = native._built()
    assert (found and found.name) == (level and f"kernels-{level}.so")
