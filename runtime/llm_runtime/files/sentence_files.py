"""The files by which sentence-transformers describes what makes embeddings of a Transformers model:
modules.json, a folder for each module, prompts.

A fetched model's folder is flat. In it, `1_Pooling/config.json` is `1_Pooling.config.json`.
Needs no torch.
"""

import json
import posixpath
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_runtime.errors import ModelCorrupt, ModelUnsupported

MODULES = "modules.json"
POOLING_CONFIG = "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
LENGTHS = (
    "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
    "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)  # fmt: skip
"""Names of the file with `max_seq_length`; newer versions write the first."""
DATA_FOLDER = "model.sentence_transformer"
"""Where `mlflow.sentence_transformers` saves the model in a version's artifacts."""
MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which several are joined."""
OLDER_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
STEPS = ("Dense", "LayerNorm", "Normalize")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Step:
    """A module behind the pooling: its kind, one of STEPS, and its own settings."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How vectors of tokens become the vector of a text. Without files of sentence-transformers it is
    what that library makes of a bare model: the mean of all tokens."""

    poolings: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    """Whether the tokens of a prompt take part in the pooling."""
    steps: tuple[Step, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    max_tokens: int = 0
    """Longest text in tokens; 0: what the tokenizer and the model say."""
    lowercase: bool = False
    cut_to: int = 0
    """Dimensions that a vector is cut to at the end; 0: none are cut."""

    @property
    def normalised(self) -> bool:
        """Whether vectors have the length 1."""
        return bool(self.steps) and self.steps[-1].kind == "Normalize" and not self.cut_to


def is_sentence_model(names: Collection[str]) -> bool:
    """Whether these names, in a flat folder, are of files of sentence-transformers."""
    return MODULES in names or flat(POOLING_CONFIG) in names


def describes_embeddings(folder: Path) -> bool:
    """Whether sentence-transformers' files are in a folder, flat or not."""
    return any(
        (folder / name).is_file() for name in (MODULES, POOLING_CONFIG, flat(POOLING_CONFIG))
    )


def flat(path: str) -> str:
    """Name in a flat folder of a file in a module's folder."""
    return path.replace("/", ".")


def is_of_module(folder: Path, file: Path, name: str) -> bool:
    """Whether `file`, whose flat name is `name`, lies where sentence-transformers reads it."""
    return file.is_relative_to(folder) and flat(file.relative_to(folder).as_posix()) == name


def saved_path(name: str, path: str) -> str:
    """Path inside a model's folder, as sentence-transformers writes it, of a file with the flat
    `name`."""
    inside = "/".join(path.split("/")[-2:])
    return inside if flat(inside) == name else name


def transformer_folder(content: bytes) -> str:
    """The folder of the Transformers model according to modules.json; "" is where that file is."""
    modules = _modules(content)
    return str(modules[0]["path"]) if modules else ""


def sentence_files(
    names: set[str], root: str, read: Callable[[str], bytes], exists: Callable[[str], bool]
) -> dict[str, str]:
    """Paths of these files by their flat names. `names` are those directly in the folder `root`."""
    beside = {name for name in names if name in (MODULES, PROMPTS, *LENGTHS)}
    folders = ["1_Pooling"]
    if MODULES in names:
        folders = [module["path"] for module in _modules(read(posixpath.join(root, MODULES)))[1:]]
    inside = [f"{folder}/{name}" for folder in folders if folder for name in MODULE_FILES]
    paths = [*sorted(beside), *(path for path in inside if exists(posixpath.join(root, path)))]
    return {flat(path): posixpath.join(root, path) for path in paths}


def read_recipe(folder: Path) -> Recipe:
    """What the files in `folder` say. Raises ModelCorrupt, and ModelUnsupported for a module that
    this runtime does not have."""
    said = _object(folder / PROMPTS)
    length = next((_object(folder / name) for name in LENGTHS if (folder / name).is_file()), {})
    task = length.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ModelUnsupported(
            f"{folder} is a sentence-transformers model for {task}, not for embeddings"
        )
    poolings, include_prompt, steps = _pooled(folder)
    prompts = _texts(said.get("prompts") or {})
    default = said.get("default_prompt_name") or ""
    if default and default not in prompts:
        raise ModelCorrupt(
            f"{PROMPTS} names the default prompt {default!r}, and has no prompt of that name; correct it"
        )
    return Recipe(
        poolings=poolings,
        include_prompt=include_prompt,
        steps=steps,
        prompts=prompts,
        default_prompt=default,
        max_tokens=_number(length.get("max_seq_length")),
        lowercase=length.get("do_lower_case") is True,
        cut_to=_number(said.get("truncate_dim")),
    )


def _pooled(folder: Path) -> tuple[tuple[str, ...], bool, tuple[Step, ...]]:
    if not (folder / MODULES).is_file():
        return *_pooling(_settings(folder, "1_Pooling")), ()
    first, *modules = _modules((folder / MODULES).read_bytes())
    _check_kind(first, "Transformer", ("Transformer",))
    if not modules:
        raise ModelUnsupported(
            f"{MODULES} names no pooling: there would be a vector for each token"
        )
    pooling, *rest = modules
    _check_kind(pooling, "Pooling", ("Pooling",))
    steps = []
    for module in rest:
        kind = _check_kind(module, "behind the pooling", (*STEPS, "Dropout"))
        if kind != "Dropout":  # It does nothing outside training.
            steps.append(_step(folder, kind, module["path"]))
    return *_pooling(_settings(folder, pooling["path"])), tuple(steps)


def _pooling(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    named = settings.get("pooling_mode")
    if named is None:
        older = [mode for name, mode in OLDER_POOLINGS.items() if settings.get(name) is True]
        named = older or ["mean"]
    modes = tuple([named] if isinstance(named, str) else named)
    if not modes or not set(modes) <= set(POOLINGS):
        raise ModelUnsupported(
            f"the pooling {', '.join(map(str, modes))} is not one of {', '.join(POOLINGS)}"
        )
    return modes, settings.get("include_prompt", True) is not False


def _step(folder: Path, kind: str, path: str) -> Step:
    settings = _settings(folder, path)
    places = ("module_input_name", "module_output_name")
    if any((settings.get(name) or "sentence_embedding") != "sentence_embedding" for name in places):
        raise ModelUnsupported(f"{path} reads or writes something other than a text's embedding")
    if kind == "Normalize":
        return Step(kind)
    weights = _found(folder, path, "model.safetensors")
    if weights is None:
        pickled = _found(folder, path, "pytorch_model.bin")
        why = "are a pickle, which is never loaded" if pickled else "are not there"
        raise ModelUnsupported(
            f"the weights of {path} {why}: save the model again with sentence-transformers, which "
            "writes model.safetensors"
        )
    return Step(kind, settings, weights)


def _check_kind(module: Mapping[str, str], place: str, known: tuple[str, ...]) -> str:
    name = module["type"]
    kind = name.rpartition(".")[2]
    if not name.startswith("sentence_transformers.") or kind not in known:
        raise ModelUnsupported(
            f"{MODULES} has {name} as {place}; this runtime knows {', '.join(known)} of "
            "sentence-transformers there, and runs no code of a model's own"
        )
    return kind


def _modules(content: bytes) -> list[dict[str, str]]:
    try:
        found = [
            {"path": str(module["path"]), "type": str(module["type"])}
            for module in json.loads(content)
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelCorrupt(
            f"{MODULES} is not a list of modules: {type(error).__name__}; upload it again"
        ) from error
    if not found:
        raise ModelCorrupt(f"{MODULES} names no module; upload it again")
    for module in found:
        # A registry must not choose where files are read.
        if module["path"] and not _FOLDER.fullmatch(module["path"]):
            raise ModelCorrupt(
                f"{MODULES} names {module['path'][:100]!r}, which is no plain folder"
            )
    return found


def _settings(folder: Path, path: str) -> dict[str, Any]:
    file = _found(folder, path, "config.json")
    return {} if file is None else _object(file)


def _found(folder: Path, path: str, name: str) -> Path | None:
    """A module's file; in a flat folder or in one of its own."""
    places = (folder / path / name, folder / flat(f"{path}/{name}"))
    return next((place for place in places if place.is_file()), None) if path else None


def _object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{file} is not JSON: {error}; upload it again") from error
    if not isinstance(found, dict):
        raise ModelCorrupt(f"{file} is not a JSON object; upload it again")
    return found


def _texts(prompts: Any) -> dict[str, str]:
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str) for text in prompts.values() if text is not None
    ):
        raise ModelCorrupt(f"the prompts in {PROMPTS} are not texts by name; correct it")
    return {str(name): text for name, text in prompts.items() if text is not None}


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
