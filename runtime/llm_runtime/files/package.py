"""Selects the files of a local folder to push to the registry:
a model's or an adapter's, verified as by `fetch`."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.files.locate import local_artifacts, locate
from llm_runtime.files.sentence_files import saved_path
from llm_runtime.files.template_files import saved_name
from llm_runtime.files.verify import safetensors_keys, verify_weights

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Package:
    """Verified files that make up one version."""

    kind: Literal["model", "adapter"]
    files: Mapping[str, Path]
    """Local paths by the name that each file gets in the registry."""
    base: str = ""
    """The base model that an adapter was trained on, according to its configuration."""

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def digest(self) -> str:
        """SHA-256 over names and contents: the same for the same files, wherever they lie."""
        names = sorted(self.files)
        with ThreadPoolExecutor(max_workers=2) as pool:  # Hashing releases the interpreter lock.
            sums = list(pool.map(lambda name: _sha256(self.files[name]), names))
        manifest = json.dumps(dict(zip(names, sums, strict=True)), separators=(",", ":"))
        return f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"


def package(folder: Path) -> Package:
    """Find and verify what `folder` holds.

    Raises ModelNotFound (nothing to serve), ModelUnsupported (pickles, not LoRA), ModelCorrupt
    (incomplete files) or ConfigInvalid (several models).
    """
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give the one that save_pretrained wrote")
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return _adapter(folder)
    try:
        located = locate(local_artifacts(folder))
    except ConfigInvalid as error:
        raise ConfigInvalid(
            f"{str(error).partition(';')[0]}; push the folder of the one you mean"
        ) from error
    verify_weights(folder / located.folder)
    files = {
        saved_path(saved_name(name, path), path): folder / path
        for name, path in located.files.items()
    }
    return Package("model", files)


def _adapter(folder: Path) -> Package:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        kind = config.get("peft_type")
        base = config.get("base_model_name_or_path") or ""
    except (ValueError, AttributeError) as error:
        raise ModelCorrupt(f"{folder / ADAPTER_CONFIG} is not a JSON object: {error}") from error
    if kind != "LORA":
        raise ModelUnsupported(
            f"the adapter in {folder} is of PEFT type {kind}; only LORA is supported"
        )
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise without_weights(str(folder), pickled=(folder / ADAPTER_PICKLE).exists())
    if strange := sorted(key for key in safetensors_keys(weights) if ".lora_" not in key):
        raise ModelUnsupported(
            f"{weights} holds {strange[0]}: only lora_A and lora_B of linear layers are supported"
        )
    return Package(
        "adapter", {ADAPTER_CONFIG: folder / ADAPTER_CONFIG, ADAPTER_WEIGHTS: weights}, str(base)
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def without_weights(where: str, *, pickled: bool) -> ModelNotFound:
    """The error for an adapter without safetensors, with advice."""
    why = f" ({ADAPTER_PICKLE} is a pickle, which is never loaded)" if pickled else ""
    return ModelNotFound(
        f"{where} holds no {ADAPTER_WEIGHTS}{why}; save the adapter with safe_serialization=True,"
        " or write it as safetensors with `llm-runtime convert FOLDER NEW-FOLDER`, and register"
        " that"
    )
