"""Loads the compiled CPU kernels.
Uses prebuilt ones, or else compiles them once for this processor.

`python -m llm_runtime.compute.native` prebuilds them, for an image that has no compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llm_runtime.engine.blocks import BLOCK_TOKENS
from llm_runtime.machine.remembered import cache_folder, cpu_flags

log = logging.getLogger(__name__)

SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("kernels.cpp", "products.cpp", "decoder.cpp")
)
HEADERS = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "step.h"))
BUILT = Path(__file__).with_name("built")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
)
_V3 = frozenset({"avx2", "fma", "bmi2"})
_V4 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512cd", "avx512vl"})
LEVELS = {
    "x86-64-v4+avx512vnni": _V4 | {"avx512_vnni"},
    "x86-64-v4": _V4,
    "x86-64-v3+avxvnni": _V3 | {"avx_vnni"},
    "x86-64-v3": _V3,
}
"""Instruction sets that an image has kernels for, best first, with the CPU flags they need. Names
are GCC's; what follows a `+` is switched on beside a level, none of which has VNNI (dot products of
8-bit integers)."""
COMPILE_SECONDS = 120
KERNELS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Number formats that the kernels support, with the suffixes of their C functions."""
_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_int64
_FLOAT = ctypes.c_float
ATTENTION = {
    (torch.float32, torch.float32): "float32",
    (torch.bfloat16, torch.bfloat16): "bfloat16",
    (torch.float32, torch.bfloat16): "float32_bfloat16",
}
"""Suffixes of `llm_attention`, by the number formats of queries and of the cache."""
ARGUMENTS = {
    "llm_attention": (_POINTER,),
    "llm_rms_norm": (_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _FLOAT, _FLOAT),
    "llm_lora": (
        _POINTER,
        _POINTER,
        _SIZE,
        _SIZE,
        _POINTER,
        _POINTER,
        _SIZE,
        _POINTER,
        _POINTER,
        _POINTER,
        _SIZE,
    ),
    "llm_gate_silu": (_POINTER, _POINTER, _POINTER, _SIZE, _SIZE),
    "llm_decode": (_POINTER, _POINTER, _POINTER),
    **dict.fromkeys(
        ("llm_product_int4", "llm_product_int8", "llm_product_float32", "llm_product_bfloat16"),
        (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _SIZE),
    ),
    "llm_int4_ranges": (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE),
    "llm_blocks": (_POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _POINTER),
}
"""Argument types of the kernels' C functions, by name without the suffix."""


class StepArguments(ctypes.Structure):
    """The struct `Step` of step.h. Fields and their order must be the same there."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("query", "key", "value", "keys", "values", "out", "sinks", "cosines", "sines")
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                "query_row", "query_head", "key_row", "key_head", "value_row", "value_head",
                "heads", "kv_heads", "head_size", "rows", "spans", "threads", "window",
            )
        ),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "span_row", "span_start", "span_count", "span_tiles", "table", "span_table", "row_block", "row_offset",
            )
        ),
    ]  # fmt: skip


class LayerArguments(ctypes.Structure):
    """The struct `Layer` of products.cpp. Fields and their order must be the same there."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
    )


class ProjectionArguments(ctypes.Structure):
    """The struct `Projection` of decoder.cpp. Fields and their order must be the same there."""

    _fields_ = (
        ("product", ctypes.c_void_p),
        ("layers", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    )


class DecoderLayerArguments(ctypes.Structure):
    """The struct `DecoderLayer` of decoder.cpp. Fields and their order must be the same there."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "query_norm", "key_norm", "gate_norm")),
        *(
            (name, ProjectionArguments)
            for name in ("attention_in", "attention_out", "gate_in", "gate_out")
        ),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("window", ctypes.c_int64),
    )  # fmt: skip


class DecoderArguments(ctypes.Structure):
    """The struct `Decoder` of decoder.cpp. Fields and their order must be the same there."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("attention", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "hidden", "gates", "heads", "kv_heads", "head_size")
        ),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None if there are neither prebuilt ones nor a compiler.
    Then torch operations are used."""
    try:
        path = _built() or _compiled()
        if path is None:
            log.warning(
                "no C++ compiler and no prebuilt kernels: attention on this CPU will be several times slower"
            )
            return None
        kernel = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(
            "the CPU kernels can't be used: falling back to torch's slower operations",
            extra={"reason": str(error)},
        )
        return None
    if kernel.llm_attention_block() != BLOCK_TOKENS:
        raise RuntimeError(f"{path} was built for another block size: remove it")
    return kernel


@cache
def limit(name: str) -> int:
    """A constant of the compiled kernels.

    `attention_rows` and `lora_rows` are the most rows of a tile, `most_head` is the largest head
    size that can be rotated, `product_outputs` is what packed layers' outputs are padded to.
    """
    return int(getattr(library(), f"llm_{name}")())


def call(name: str, number_format: str, *arguments: Any) -> None:
    """Run a kernel for float32 or bfloat16.
    Pointers are tensors' `data_ptr()`. Sizes are not checked."""
    _function(name, number_format)(*arguments)


def address(name: str, number_format: str) -> int | None:
    """Where a kernel's C function begins, for kernels that call others."""
    return ctypes.cast(_function(name, number_format), ctypes.c_void_p).value


@cache
def _function(name: str, number_format: str) -> Any:
    function = getattr(library(), f"{name}_{number_format}")
    function.argtypes = ARGUMENTS[name]
    function.restype = None
    return function


def build(target: Path, architecture: str) -> None:
    """Compile for one instruction set, named as in LEVELS, or `native`.
    Raises OSError or SubprocessError."""
    level, *beside = architecture.split("+")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        out = Path(folder) / target.name
        command = [
            _compiler() or "g++",
            *FLAGS,
            f"-march={level}",
            *(f"-m{name}" for name in beside),
            "-o",
            str(out),
            *map(str, SOURCES),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
        if done.returncode:
            raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        out.replace(target)  # Atomic, as two processes may build at the same time.


def main() -> None:
    """Build every instruction set of this architecture into the package."""
    for architecture in LEVELS if platform.machine() == "x86_64" else ("native",):
        build(BUILT / f"kernels-{architecture}.so", architecture)
        print(f"built for {architecture}", file=sys.stderr)


def _built() -> Path | None:
    flags = cpu_flags()
    levels = (
        [level for level, needed in LEVELS.items() if needed <= flags]
        if platform.machine() == "x86_64"
        else ["native"]
    )
    files = (BUILT / f"kernels-{level}.so" for level in levels)
    return next((file for file in files if file.is_file()), None)


def _compiled() -> Path | None:
    compiler = _compiler()
    if compiler is None:
        return None
    # The name depends on the processor: one home folder may be shared by different machines.
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, timeout=10, check=True
    ).stdout
    inputs = (
        *(file.read_bytes() for file in (*SOURCES, *HEADERS)),
        version,
        " ".join(sorted(cpu_flags())).encode(),
        " ".join(FLAGS).encode(),
    )
    name = f"kernels-{hashlib.sha256(b'|'.join(inputs)).hexdigest()[:16]}.so"
    target = _cache_folder() / name
    if not target.is_file():
        build(target, "native")
    return target


def _compiler() -> str | None:
    """g++, because torch ships its OpenMP.
    Another compiler's OpenMP would compete with it for the cores."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _cache_folder() -> Path:
    return cache_folder("kernels") or Path(tempfile.mkdtemp(prefix="llm-operator-kernels-"))


if __name__ == "__main__":
    main()
