"""`llm-runtime convert`: pickled weights become safetensors, in a folder beside.
The only place that unpickles."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm_runtime import errors
from llm_runtime.commands import faults
from llm_runtime.common.python import PYTHON
from llm_runtime.contract import report_from_termination_message
from llm_runtime.fetching.disk import check_room, disk_errors
from llm_runtime.fetching.progress import MIB
from llm_runtime.files.locate import Located, local_artifacts, locate_pickles
from llm_runtime.files.verify import verify_weights

SHARD_BYTES = 5_000_000_000
CHILD = (*PYTHON, "-m", "llm_runtime.loading.unpickle")

Source = Annotated[
    Path,
    typer.Argument(help="Folder with pytorch_model*.bin or adapter_model.bin. It stays as it is."),
]
Target = Annotated[Path, typer.Argument(help="Folder to make.")]


def convert(source: Source, target: Target) -> None:
    """Write .bin weights as safetensors, with configuration and tokenizer, to TARGET.

    The pickles are opened, by PyTorch's loader for tensors only (weights_only) and in a process of
    its own: a file that wants to run code is refused. Do it only with files whose maker you trust.
    """
    with faults("convert"):
        written = _convert(source, target)
    typer.echo(
        f"{target} holds {', '.join(written)}; register it with `llm-runtime push {target}"
        " --name …`"
    )


def _convert(source: Path, target: Path) -> list[str]:
    if not source.is_dir():
        raise errors.ModelNotFound(f"{source} is not a folder")
    if target.exists():
        raise errors.ConfigInvalid(f"{target} is there already; name a folder that is not")
    artifacts = local_artifacts(source)
    located = locate_pickles(artifacts)
    pickles = [source / path for name, path in located.files.items() if name.endswith(".bin")]
    size = sum(file.stat().st_size for file in pickles)
    typer.echo(
        f"unpickling {', '.join(file.name for file in pickles)} ({size / MIB:,.0f} MiB) in a"
        " process of its own, as tensors only",
        err=True,
    )
    partial = target.with_name(f".partial-{target.name}")
    try:
        with disk_errors(f"writing {target}"):
            _write(source, partial, located, pickles, size)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(file.name for file in target.glob("*.safetensors"))


def _write(source: Path, partial: Path, located: Located, pickles: list[Path], size: int) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    check_room(partial, size)
    for name, path in located.files.items():
        if not name.endswith(".bin"):
            shutil.copyfile(source / path, partial / name)
    name = "adapter_model" if (partial / "adapter_config.json").exists() else "model"
    _unpickle(pickles, partial, name)
    if name == "model":
        verify_weights(partial)


def _unpickle(pickles: list[Path], target: Path, name: str) -> None:
    shard_bytes = SHARD_BYTES if name == "model" else sys.maxsize
    plan = {
        "files": [str(file) for file in pickles],
        "target": str(target),
        "name": name,
        "shard_bytes": shard_bytes,
    }
    done = subprocess.run([*CHILD, json.dumps(plan)], capture_output=True, text=True)
    if done.returncode:
        report = report_from_termination_message(done.stdout + done.stderr)
        if done.returncode == -signal.SIGKILL:
            message = (
                "the converting process ended with status -9, as it does where memory runs out;"
                " give it more"
            )
            raise errors.OutOfMemory(message)
        if report is None:
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise errors.ModelCorrupt(
                f"the converting process ended with status {done.returncode}: {tail}"
            )
        raise getattr(errors, report.reason)(report.message)
