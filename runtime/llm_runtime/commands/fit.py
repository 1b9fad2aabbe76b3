"""`llm-runtime fit`: whether a model will fit,
from its configuration and headers alone, here or in another machine."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llm_runtime import errors, settings
from llm_runtime.commands import faults
from llm_runtime.contract import CONFIG_FLAG, ModelConfig, RuntimeConfig
from llm_runtime.machine.memory import MIB, available_bytes

if TYPE_CHECKING:
    from llm_runtime.files.fit import Need, Sizing

Source = Annotated[
    str | None,
    typer.Argument(help="A folder, or a uri as in model.uri. None: the configured model."),
]
Config = Annotated[
    Path | None,
    typer.Option(CONFIG_FLAG, help="Configuration, JSON or YAML. None: the environment."),
]
Memory = Annotated[
    str, typer.Option(help="Memory to ask about, like 24Gi or 80G. Default: what is free here.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option(help="Over engine.device; auto: the GPU where there is one."),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, sizes in bytes.")]

UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}
FIRST_GPU = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0")


def fit(
    source: Source = None,
    config: Config = None,
    memory: Memory = "",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say whether the model fits, and what would. Only config.json and headers are read.

    The status is 0 if it fits, 1 if it does not, 2 if that can't be said.
    """
    from llm_runtime.fetching.outline import outline
    from llm_runtime.files.fit import needed, verdict

    with faults("fit", status=2):
        asked = bytes_of(memory) if memory else None
        wanted = _wanted(source, config)
        where, free = _place(device or wanted.engine.device, asked)
        found = outline(wanted.model)
        sizing = found.sizing(wanted.engine, where)
    need = needed(sizing)
    refusal = verdict(sizing, free)
    if as_json:
        typer.echo(json.dumps(_document(found.source, sizing, need, free, refusal), indent=2))
    else:
        typer.echo(_table(found.source, sizing, need, free, refusal))
    raise typer.Exit(int(bool(refusal)))


def bytes_of(quantity: str) -> int:
    """`24Gi`, `80G` or a number of bytes, as Kubernetes writes it. Raises ConfigInvalid."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]|[KMGT]i)?", quantity)
    if found is None:
        raise errors.ConfigInvalid(
            f"--memory {quantity!r} is not a size like 24Gi, 80G or a number of bytes"
        )
    return int(float(found[1]) * UNITS[found[2] or ""])


def _wanted(source: str | None, config: Path | None) -> RuntimeConfig:
    try:
        loaded = settings.load(config).config if config or source is None else None
    except settings.SettingsInvalid as error:
        raise errors.ConfigInvalid(str(error)) from error
    if source is None:
        assert loaded
        return loaded
    is_uri = re.match(r"[a-z][a-z0-9+-]*:/", source) is not None
    model = (
        ModelConfig(name="model", uri=source) if is_uri else ModelConfig(name="model", path=source)
    )
    return loaded.model_copy(update={"model": model}) if loaded else RuntimeConfig(model=model)


def _place(device: str, memory: int | None) -> tuple[str, int]:
    """The device that the model would use, and the bytes that are free there."""
    from llm_runtime.files.fit import STARTED_BYTES

    gpu = None if device == "cpu" else _free_on_gpu()
    if device == "cuda" and gpu is None and memory is None:
        raise errors.ConfigInvalid(
            "there is no GPU here; say what the other machine has with --memory"
        )
    where = "cuda" if device == "cuda" or gpu is not None else "cpu"
    free = memory if memory is not None else gpu if where == "cuda" else available_bytes()
    # On a CPU the server's own processes share it.
    return where, max(int(free or 0) - (STARTED_BYTES if where == "cpu" else 0), 0)


def _free_on_gpu() -> int | None:
    """Free GPU memory according to the driver's own tool,
    because this process does not import torch."""
    if shutil.which(FIRST_GPU[0]) is None:
        return None
    answer = subprocess.run(FIRST_GPU, capture_output=True, text=True, timeout=20)
    return (
        int(answer.stdout.split()[0]) * MIB
        if answer.returncode == 0 and answer.stdout.strip()
        else None
    )


def _document(
    source: str, sizing: "Sizing", need: "Need", free: int, refusal: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "source": source,
        "fits": not refusal,
        "task": "embed" if sizing.embeds else "generate",
        "device": sizing.device,
        "dtype": sizing.dtype,
        "quantization": sizing.engine.quantization,
        "stored_quantised": sorted({str(layer.format) for layer in sizing.stored}),
        "max_model_length": sizing.length,
        "needed_bytes": need.total,
        "weights_bytes": need.weights,
        "sequence_cache_bytes": need.cache,
        "reserve_bytes": need.reserve,
        "available_bytes": free,
        "would_fit": list(refusal),
    }


def _table(source: str, sizing: "Sizing", need: "Need", free: int, refusal: tuple[str, ...]) -> str:
    from llm_runtime.files.fit import as_asked

    rows = [
        (need.weights, f"weights as {as_asked(sizing)}"),
        *(
            []
            if sizing.embeds
            else [(need.cache, f"keys and values of one sequence of {sizing.length} tokens")]
        ),
        (need.reserve, "reserve"),
        (need.total, "needed"),
        (
            free,
            "there, on the GPU" if sizing.device == "cuda" else "there, beside the server itself",
        ),
    ]
    lines = [
        f"{source} on {sizing.device}",
        *(f"{-(-size // MIB):>10,} MiB  {what}" for size, what in rows),
    ]
    lines += (
        ["It does not fit. What would:", *(f"  {way}" for way in refusal)]
        if refusal
        else ["It fits."]
    )
    return "\n".join(lines)
