"""Let the torch of the package index serve on CPUs without CUDA: `cpu_torch.py ENVIRONMENT`.

The index holds one torch for Linux. Its `libtorch_python.so` is linked with 520 MB of kernels in
`libtorch_cuda.so`, which in turn is linked with 3 GB of NVIDIA's libraries. `libtorch_cpu.so`,
which computes on CPUs, needs neither. So `libtorch_cuda.so` is replaced by a library of the same
name that has the symbols that are asked for, and torch's Python part says what that of a CPU build
says: no CUDA. A call into what was taken out would end the process with a line that says so. The
program ends with an error where this torch is another than it expects.
"""

import re
import subprocess
import sys
from pathlib import Path

MESSAGE = (
    "This image computes on CPUs only: build the runtime image with ACCELERATOR=cuda for NVIDIA"
    " GPUs."
)
"""Said by a call into what was taken out."""
REPLACED = "libtorch_cuda.so"
UNUSED = ("libtorch_cuda_linalg.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
"""Only `libtorch_cuda.so` asks for these."""
SHIMS = {"libcudnn.so.9": "cudnn", "libcufile.so.0": "cuFile"}
"""Linked with for a version number and for reading files into a GPU;
and how the names of their functions begin."""
ANSWERS = {
    "_ZN4c10d16ProcessGroupNCCL7OptionsC1Eb": "(*(void ***)self = options_table + 2, 0)",
    "_ZN4c10d15get_gil_checkerEv": "(long)place",
    "_ZN4c10d17nvshmem_extension20is_nvshmem_availableEv": "0",
}
"""What is called while torch is imported, in C: an object of no content as the default value of an
argument, a place in which to keep a function, and whether NVSHMEM is there."""
NVIDIA = ("libcudart.so.", "libcupti.so.")
"""What torch's CPU half is linked with: to look for a driver, and to profile."""
PYTHON = [
    ("backends/cuda/__init__.py", r"return torch\._C\._has_cuda$", "return False"),
    ("backends/cudnn/__init__.py", r"return torch\._C\._has_cudnn$", "return False"),
    (
        "cuda/__init__.py",
        r'^    return hasattr\(torch\._C, "_cuda_getDeviceCount"\)$',
        "    return False",
    ),
    ("version.py", r"^cuda: .*$", "cuda: Optional[str] = None"),
]
"""Torch's files, a line in each, and that line in a CPU build."""
CHECK = """
import torch, torch.distributed
assert not torch.cuda.is_available() and not torch.backends.cuda.is_built() and torch.version.cuda is None
assert torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).sum() == 24
"""
HEAD = f"""
#include <stdio.h>
#include <stdlib.h>
extern void *type_table[] __asm__("_ZTVN10__cxxabiv117__class_type_infoE");
struct type {{ void *table; const char *name; }};
static void *place[1];
static long nothing(void) {{ return 0; }}
static struct type options_type = {{type_table + 2, "N4c10d16ProcessGroupNCCL7OptionsE"}};
static void *options_table[34] = {{0, &options_type, [2 ... 33] = nothing}};
static void absent(const char *name) {{ dprintf(2, "%s was called. {MESSAGE}\\n", name); abort(); }}
"""


def symbols(library: Path, which: str) -> set[str]:
    """The names of a shared library's dynamic symbols,
    `which` being nm's option that chooses among them."""
    listed = subprocess.run(
        ["nm", "-D", which, library], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines()}


def source(wanted: set[str]) -> str:
    """C of a library with these symbols: type names as pybind11 reads them,
    empty tables, functions that refuse."""
    lines = [HEAD]
    for number, name in enumerate(sorted(wanted)):
        here = f'__asm__("{name}")'
        if name.startswith("_ZTI"):
            lines.append(
                f"struct type type{number} {here} = {{type_table + 2,"
                f' "{name.removeprefix("_ZTI")}"}};'
            )
        elif name.startswith("_ZTV"):
            lines.append(f"void *table{number}[64] {here};")
        else:
            act = f"return {ANSWERS[name]};" if name in ANSWERS else f'absent("{name}");'
            lines.append(
                f"long function{number}(void *) {here}; long function{number}(void *self) {{"
                f" {act} }}"
            )
    return "\n".join(lines) + "\n"


def compile_into(file: Path, wanted: set[str]) -> None:
    """Write the library `file` with these symbols, under the version that its users ask for."""
    versions = file.with_suffix(".map")
    versions.write_text(f"{file.name} {{ *; }};")
    options = [
        "-shared",
        "-fPIC",
        "-O1",
        "-w",
        f"-Wl,-soname,{file.name}",
        f"-Wl,--version-script={versions}",
    ]
    command = ["g++", *options, "-o", str(file), "-x", "c", "-", "-x", "none", "-lstdc++"]
    subprocess.run(command, input=source(wanted), text=True, check=True)
    versions.unlink()
    print(f"cpu_torch: {file.name} has {len(wanted)} symbols in {file.stat().st_size >> 10} KiB")


def change_line(file: Path, pattern: str, line: str) -> None:
    """Replace the one line that matches; a file linked from elsewhere stays as it is there."""
    text, changed = re.subn(pattern, line, file.read_text(), flags=re.MULTILINE)
    if changed != 1:
        sys.exit(
            f"cpu_torch: {file} has {changed} lines like {pattern!r}, not one: see what this torch"
            " has instead."
        )
    file.unlink()
    file.write_text(text)


def main() -> None:
    environment = Path(sys.argv[1])
    packages = next(environment.glob("lib/python3*/site-packages"))
    folder = packages / "torch" / "lib"
    for name, pattern, line in PYTHON:
        change_line(packages / "torch" / name, pattern, line)
    offered: set[str] = set()
    for name in (REPLACED, *UNUSED):
        offered |= symbols(folder / name, "--defined-only")
        (folder / name).unlink()
    rest = [*folder.glob("*.so"), *packages.glob("torch/_C*.so")]
    wanted = {name for file in rest for name in symbols(file, "--undefined-only")}
    compile_into(folder / REPLACED, wanted & offered)
    for name, start in SHIMS.items():
        compile_into(folder / name, {symbol for symbol in wanted if symbol.startswith(start)})
    for file in packages.glob("nvidia/**/*"):
        if file.is_file() and not file.name.startswith(NVIDIA):
            file.unlink()
    subprocess.run([environment / "bin" / "python", "-B", "-c", CHECK], check=True)


main()
