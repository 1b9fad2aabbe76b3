"""Selects the artifacts of a version that are needed to serve it:
the model's folder, its weights, its tokenizer.

Handles every layout that `mlflow.transformers` writes, and plain Transformers folders. MLmodel is
read as YAML; no flavour is imported and no pickle is opened.
"""

import json
import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.files.sentence_files import (
    DATA_FOLDER,
    MODULES,
    sentence_files,
    transformer_folder,
)
from llm_runtime.files.template_files import TEMPLATE_FOLDER, flat_name

MAX_DEPTH = 3
SENTENCE_FLAVOR = "sentence_transformers"
"""MLflow's flavor of models that sentence-transformers saves."""
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLE_INDEX = "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
GPTQ_CONFIG = "quantize_config.json"
"""The file in which GPTQ's tools describe a checkpoint; older ones nowhere else."""
_CONFIGURATION = ("config.json", "generation_config.json", GPTQ_CONFIG, INDEX)
_VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_TOKENIZER = (
    *_VOCABULARY, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
UNTIE_FIRST = (
    "where it adapts lm_head or the embeddings of a model that ties them, untie them before training or merging "
    "(tie_word_embeddings=False): merged into both, it is another model"
)
"""Accompanies each advice to merge: merging into a tied lm_head changes the embeddings, too."""

MOST_READ_BYTES = 64 << 20
"""Largest file that is parsed to find a model.
Real ones are small; a larger one could exhaust this process."""
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, slots=True)
class Artifacts:
    """A set of files: sizes in bytes by relative path (None if unknown),
    and a function that reads a small file."""

    sizes: Mapping[str, int | None]
    read: Callable[[str], bytes]
    place: str = "the artifacts"
    """How error messages refer to the files."""

    def names(self, folder: str) -> set[str]:
        """Names of the files directly in `folder`."""
        return {
            posixpath.basename(path) for path in self.sizes if posixpath.dirname(path) == folder
        }

    def folders(self) -> list[str]:
        return sorted(
            {posixpath.dirname(path) for path in self.sizes},
            key=lambda folder: (folder.count("/"), folder),
        )


@dataclass(frozen=True, slots=True)
class Located:
    """The files needed to serve: artifact paths by the name that each gets in the one flat
    folder."""

    folder: str
    files: Mapping[str, str]


def local_artifacts(folder: Path) -> Artifacts:
    """The files of a local folder."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and len(path.relative_to(folder).parts) <= MAX_DEPTH + 2
    }
    return Artifacts(sizes, lambda path: (folder / path).read_bytes(), str(folder))


def check_links(folder: Path) -> None:
    """Raise ModelCorrupt for a symbolic link that leaves the folder, and for a pipe or a device:
    a model must not make this process read others' files, or wait for ever.

    In the Hugging Face cache, files are links to blobs beside their snapshot, so there the whole
    repository is allowed. The folder may be a link itself, but not to one around it: whoever fills
    a volume would choose how much is inside.
    """
    root = folder.resolve()
    if any(parent.resolve().is_relative_to(root) for parent in folder.absolute().parents):
        raise ModelCorrupt(f"{folder} is a link to a folder around it: name the model's own folder")
    home = (
        root.parents[1]
        if root.parent.name == "snapshots" and (root.parents[1] / "blobs").is_dir()
        else root
    )
    for path in folder.rglob("*"):
        # Path.resolve raises for links in a circle, which lead nowhere.
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            raise ModelCorrupt(
                f"{path.relative_to(folder)} is a link out of {folder}: put the file itself there"
            )
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelCorrupt(
                f"{path.relative_to(folder)} in {folder} is a pipe, a socket or a device: remove it"
            )


def locate(artifacts: Artifacts, sub_path: str = "") -> Located:
    """Find the one model. Raises ModelNotFound, ModelUnsupported, ModelCorrupt,
    or ConfigInvalid for several."""
    for path in artifacts.sizes:
        check_path(path)
    base = _base(artifacts, sub_path)
    root = _model_folder(artifacts, base)
    folder = _inside_modules(artifacts, root)
    tokenizer = _tokenizer_folder(artifacts, folder, base)
    files = {
        name: _join(folder, name) for name in _CONFIGURATION if name in artifacts.names(folder)
    }
    files |= _tokenizer_files(artifacts, tokenizer)
    files |= _weights(artifacts, folder)
    for place in dict.fromkeys((folder, root)):
        files |= sentence_files(
            artifacts.names(place),
            place,
            partial(_read, artifacts),
            artifacts.sizes.__contains__,
        )
    return Located(folder, files)


def locate_pickles(artifacts: Artifacts) -> Located:
    """The .bin files of the one folder that has some, and the files that belong with them.

    Raises ModelNotFound, ModelCorrupt, or ConfigInvalid if several folders have some.
    """
    by_folder = {
        folder: pickles for folder in artifacts.folders() if (pickles := _bins(artifacts, folder))
    }
    if not by_folder:
        raise ModelNotFound(
            f"no pytorch_model*.bin or adapter_model.bin; files there: {_listed(sorted(artifacts.sizes))}"
        )
    if len(by_folder) > 1:
        raise ConfigInvalid(
            f"several folders hold pickled weights: {_listed(list(by_folder))}; name one of them"
        )
    [(folder, pickles)] = by_folder.items()
    names = artifacts.names(folder)
    files = {
        name: _join(folder, name)
        for name in (*_CONFIGURATION, ADAPTER_CONFIG)
        if name in names - {INDEX}
    }
    if ADAPTER_CONFIG not in files:
        home = _tokenizer_folder(artifacts, folder, "")
        files |= _tokenizer_files(artifacts, home)
    return Located(folder, files | {name: _join(folder, name) for name in pickles})


def _tokenizer_files(artifacts: Artifacts, folder: str) -> dict[str, str]:
    """The tokenizer's files, and named chat templates from their own folder."""
    files = {name: _join(folder, name) for name in _TOKENIZER if name in artifacts.names(folder)}
    places = (folder, _join(folder, TEMPLATE_FOLDER))
    paths = [_join(place, name) for place in places for name in sorted(artifacts.names(place))]
    return files | {flat: path for path in paths if (flat := flat_name(path))}


def _bins(artifacts: Artifacts, folder: str) -> list[str]:
    names = artifacts.names(folder)
    if ADAPTER_CONFIG in names:
        return sorted(names & {"adapter_model.bin"})
    if "config.json" not in names:
        return []
    if PICKLE_INDEX in names:
        shards = set(index_shards(_read(artifacts, _join(folder, PICKLE_INDEX)), ".bin").values())
        if missing := sorted(shards - names):
            raise ModelCorrupt(
                f"{_join(folder, PICKLE_INDEX)} names shards that are not there: {_listed(missing)}"
            )
        return sorted(shards)
    return sorted(names & {"pytorch_model.bin"})


def check_path(path: str) -> None:
    """Refuse a path that would leave the folder it is joined to:
    a registry must not choose where files are written."""
    parts = path.split("/")
    if (
        not path
        or path.startswith("/")
        or "\\" in path
        or "\0" in path
        or {"", ".", ".."} & set(parts)
    ):
        raise ModelCorrupt(
            f"the artifact path {path!r} is not a plain relative path; nothing was downloaded"
        )


def _base(artifacts: Artifacts, sub_path: str) -> str:
    base = sub_path.strip("/")
    if {".", ".."} & set(base.split("/")) or "//" in base or "\\" in base:
        raise ConfigInvalid(
            f"subPath {sub_path!r} is not a plain relative path; write it like folder/model"
        )
    if base and not any(path.startswith(f"{base}/") for path in artifacts.sizes):
        raise ModelNotFound(
            f"subPath {base!r} is not in {artifacts.place}; folders there: {_listed(_all_folders(artifacts))}"
        )
    return base


def _inside_modules(artifacts: Artifacts, root: str) -> str:
    """The Transformers model's folder below one of sentence-transformers; most often the same."""
    path = _join(root, MODULES)
    if path not in artifacts.sizes:
        return root
    folder = _join(root, transformer_folder(_read(artifacts, path))).rstrip("/")
    if _is_model(artifacts, folder):
        return folder
    if _is_model(artifacts, root):  # Collected in one folder, by `push`.
        return root
    raise _nothing_to_serve(artifacts, folder)


def _model_folder(artifacts: Artifacts, base: str) -> str:
    named = _named_by_mlmodel(artifacts, base)
    if named is not None:
        if not _is_model(artifacts, named):
            raise _nothing_to_serve(artifacts, named)
        return named
    inside = [folder for folder in artifacts.folders() if _depth_below(base, folder) <= MAX_DEPTH]
    candidates = [folder for folder in inside if _is_model(artifacts, folder)]
    # A model's folder may contain others (original/, onnx/, checkpoints).
    # Then the outer one is meant.
    if base in candidates:
        return base
    described = [folder for folder in inside if MODULES in artifacts.names(folder)]
    if len(described) == 1:  # The folders of its modules look like models, too.
        return described[0]
    if len(candidates) > 1:
        raise ConfigInvalid(
            f"the artifacts hold several models: {_listed(candidates)}; name one in model.mlflow.subPath"
        )
    if not candidates:
        raise _nothing_to_serve(artifacts, base)
    return candidates[0]


def _named_by_mlmodel(artifacts: Artifacts, base: str) -> str | None:
    """The model's folder according to an MLmodel file in `base`, None without one."""
    path = _join(base, "MLmodel")
    if path not in artifacts.sizes:
        return None
    flavor = _transformers_flavor(_read(artifacts, path))
    if flavor is None:
        return _join(base, DATA_FOLDER)
    if folder := _text(flavor, "model_binary"):
        check_path(folder)
        return _join(base, folder)
    if adapter := _text(flavor, "peft_adaptor"):
        raise _adapter_only(_join(base, adapter))
    if source := _text(flavor, "source_model_name"):
        raise ModelUnsupported(
            f"the version holds no weights, only the name {source!r} (save_pretrained=False); "
            "register it again with the weights"
        )
    return None


def _transformers_flavor(content: bytes) -> dict[str, Any] | None:
    """What mlflow.transformers has written; None for what mlflow.sentence_transformers has."""
    try:
        mlmodel = yaml.safe_load(content)
        flavors = mlmodel.get("flavors") or {}
        names = set(flavors)
        flavor = flavors.get("transformers") or {}
    except (yaml.YAMLError, RecursionError, AttributeError, TypeError, ValueError) as error:
        raise ModelCorrupt(
            f"the MLmodel file is not valid YAML of MLflow: {_short(error)}"
        ) from error
    if not isinstance(flavor, dict):
        raise ModelCorrupt(
            "the transformers flavor in the MLmodel file is not a mapping; log the model again"
        )
    if not {"transformers", SENTENCE_FLAVOR} & names and names - {"python_function"}:
        raise ModelUnsupported(
            f"the version was logged as {_listed(sorted(_short(name) for name in names))}; this runtime serves "
            "mlflow.transformers and mlflow.sentence_transformers models and plain folders of Transformers"
        )
    return None if SENTENCE_FLAVOR in names and "transformers" not in names else flavor


def _text(flavor: Mapping[str, Any], field: str) -> str:
    """A field that must be a string.
    YAML aliases can expand a few lines to gigabytes when another value is printed."""
    value = flavor.get(field) or ""
    if not isinstance(value, str):
        raise ModelCorrupt(f"{field} in the MLmodel file is not a string; log the model again")
    return value


def _read(artifacts: Artifacts, path: str) -> bytes:
    if (artifacts.sizes[path] or 0) > MOST_READ_BYTES:
        raise ModelCorrupt(
            f"{path} has {artifacts.sizes[path]} bytes, far more than such a file needs; upload it again"
        )
    return artifacts.read(path)


def _is_model(artifacts: Artifacts, folder: str) -> bool:
    names = artifacts.names(folder)
    return "config.json" in names and any(_is_weights(name) for name in names)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith("adapter_")


def _nothing_to_serve(artifacts: Artifacts, base: str) -> Exception:
    inside = [path for path in artifacts.sizes if not base or path.startswith(f"{base}/")]
    if any(posixpath.basename(path) == ADAPTER_CONFIG for path in inside):
        return _adapter_only(base or ".")
    pickles = [path for path in inside if path.endswith(_PICKLES)]
    if pickles:
        return ModelUnsupported(
            f"the weights are pickles ({_listed(pickles)}), which may run code when opened and are never loaded; "
            "write them as safetensors with `llm-runtime convert FOLDER NEW-FOLDER` and register that"
        )
    if any(path.endswith(".gguf") for path in inside):
        return ModelUnsupported(
            "the weights are GGUF; this runtime loads safetensors of Transformers"
        )
    return ModelNotFound(
        f"no folder with config.json and *.safetensors within {MAX_DEPTH} levels of {base or artifacts.place}; "
        f"files there: {_listed(sorted(inside))}"
    )


def _adapter_only(folder: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"{folder!r} holds a PEFT adapter without its base model; merge it (merge_and_unload), save the result with "
        f"save_pretrained and register a new version; {UNTIE_FIRST}"
    )


def _tokenizer_folder(artifacts: Artifacts, folder: str, base: str) -> str:
    parent = posixpath.dirname(folder)
    beside = [_join(root, "components/tokenizer") for root in (folder, parent, base)]
    for candidate in (folder, *beside, parent):
        if artifacts.names(candidate) & set(_VOCABULARY):
            return candidate
    raise ModelUnsupported(
        f"no tokenizer in {folder or 'the root'!r}, components/tokenizer or the folder above; save it with "
        "tokenizer.save_pretrained into the model's folder and register a new version"
    )


def _weights(artifacts: Artifacts, folder: str) -> dict[str, str]:
    names = artifacts.names(folder)
    if INDEX in names:
        shards = index_shards(_read(artifacts, _join(folder, INDEX)))
        if missing := sorted(set(shards.values()) - names):
            raise ModelCorrupt(
                f"{_join(folder, INDEX)} names shards that are not there: {_listed(missing)}; upload again"
            )
        return {name: _join(folder, name) for name in sorted(set(shards.values()))}
    files = sorted(name for name in names if _is_weights(name))
    if WEIGHTS in files:
        return {WEIGHTS: _join(folder, WEIGHTS)}
    if len(files) > 1:
        raise ModelCorrupt(
            f"{folder or 'the root'!r} holds {_listed(files)} but no {INDEX}; upload the whole folder again"
        )
    return {WEIGHTS: _join(folder, files[0])}


def index_shards(content: bytes, ending: str = ".safetensors") -> dict[str, str]:
    """The file of each tensor, from an index of shards.
    Raises ModelCorrupt if it is not a valid one."""
    try:
        shards = json.loads(content)["weight_map"]
        result = {str(tensor): str(file) for tensor, file in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelCorrupt(
            f"{INDEX} is not an index of shards: {_short(error)}; upload it again"
        ) from error
    if not result or any("/" in file or not file.endswith(ending) for file in result.values()):
        raise ModelCorrupt(f"{INDEX} names files that are no shards beside it; upload it again")
    return result


def _join(folder: str, name: str) -> str:
    return posixpath.join(folder, name)


def _depth_below(base: str, folder: str) -> int:
    """Levels from `base` down to `folder`; more than MAX_DEPTH if it lies elsewhere."""
    if not base:
        return len(folder.split("/")) if folder else 0
    if folder == base:
        return 0
    return (
        folder.removeprefix(f"{base}/").count("/") + 1
        if folder.startswith(f"{base}/")
        else MAX_DEPTH + 1
    )


def _all_folders(artifacts: Artifacts) -> list[str]:
    """Folders with files in them, and their parents."""
    folders = {folder for folder in artifacts.folders() if folder}
    for folder in list(folders):
        while folder := posixpath.dirname(folder):
            folders.add(folder)
    return sorted(folders)


def _short(what: object, most: int = 200) -> str:
    text = f"{type(what).__name__}: {what}" if isinstance(what, Exception) else str(what)
    return text if len(text) <= most else f"{text[:most]}…"


def _listed(items: list[str], most: int = 8) -> str:
    shown = ", ".join(item or "." for item in items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown or "none"
