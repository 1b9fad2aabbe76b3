"""llama.cpp as `bench/llama-cpp` builds it, and models in its file format."""

import os
import subprocess
import sys
from pathlib import Path

from bench.process import NotStarted
from devstack.cache import CACHE

FOLDER = Path(os.environ.get("LLM_OPERATOR_LLAMA_CPP") or CACHE / "bench" / "llama-cpp")
SERVER = FOLDER / "build" / "bin" / "llama-server"
QUANTISE = FOLDER / "build" / "bin" / "llama-quantize"
SOURCE = FOLDER / "source"
FORMATS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
"""llama.cpp's formats, by the engine's: Q4_0 has groups of 32 with one scale each, 4.5 bits a weight."""


def there() -> bool:
    """Whether it is built."""
    return SERVER.is_file()


def version() -> str:
    """The number of its build."""
    asked = subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=False)
    words = (asked.stdout + asked.stderr).split()
    return words[words.index("version:") + 1] if "version:" in words else "unknown"


def weights(model: Path, number_format: str) -> Path:
    """The file of a model's folder in one format, made once beside the folder.
    Raises `NotStarted`."""
    target = model.with_name(f"{model.name}-{FORMATS[number_format]}.gguf")
    if target.is_file():
        return target
    made = target.with_suffix(".part")
    if FORMATS[number_format] in ("F32", "BF16"):
        command: list[str | Path] = [sys.executable, SOURCE / "convert_hf_to_gguf.py", model]
        command += ["--outfile", made, "--outtype", FORMATS[number_format].lower()]
    else:
        command = [QUANTISE, weights(model, "float32"), made, FORMATS[number_format]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (SOURCE / "gguf-py", FOLDER / "python"))),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotStarted(f"no {target.name}: {done.stderr.strip()[-500:]}")
    made.replace(target)
    return target
