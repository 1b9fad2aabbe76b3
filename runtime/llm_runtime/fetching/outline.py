"""The parts of a model that decide how much memory it takes:
config.json and the headers of its weight files.

They come from a folder or a registry.
From a registry, only the first megabyte or two of each file is downloaded.
"""

import json
import os
import posixpath
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from llm_runtime.contract import ENV_MLFLOW_TRACKING_URI, EngineConfig, MlflowVersion, ModelConfig
from llm_runtime.errors import ConfigInvalid, ModelCorrupt, ModelNotFound, ModelUnsupported
from llm_runtime.fetching import stream
from llm_runtime.fetching.part import Part
from llm_runtime.fetching.registry import Files, MlflowRegistry, Registry, fatal_of
from llm_runtime.fetching.sources import Reference, files_of, find
from llm_runtime.files.fit import Sizing, tensors_of
from llm_runtime.files.heads import embeds, refuse_other_heads, refuse_quantised
from llm_runtime.files.locate import GPTQ_CONFIG, Artifacts, Located, local_artifacts, locate
from llm_runtime.files.quantised import Quantisation, quantisation_of, refuse_twice
from llm_runtime.files.sentence_files import is_sentence_model
from llm_runtime.files.stored_layers import plain_tensors, stored_layers, stores_head
from llm_runtime.files.verify import MAX_HEADER_BYTES, header_of

CONFIG = "config.json"
_INNER = ("text_config", "llm_config", "language_config", "decoder")
"""Keys under which configurations of multimodal models keep that of their language model."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without its weights.
    `tensors` are the headers' entries by name, `settings` the language model's."""

    source: str
    settings: dict[str, Any]
    tensors: Mapping[str, Any]
    quantisation: Quantisation | None = None
    described: bool = False
    """Whether there are files of sentence-transformers."""

    @property
    def dtype(self) -> str:
        """The checkpoint's own dtype, according to its configuration."""
        return str(
            self.settings.get("dtype") or self.settings.get("torch_dtype") or "float32"
        ).removeprefix("torch.")

    def sizing(self, engine: EngineConfig, device: str) -> Sizing:
        """The Sizing that `load` would make.
        As there, `auto` is the checkpoint's dtype on a GPU, float32 on a CPU.
        Raises ModelCorrupt, ModelUnsupported or ConfigInvalid as there, for quantised layers and for
        a model of another kind."""
        embedding = embeds(engine.task, self.settings, described=self.described)
        if embedding:
            refuse_quantised(engine.quantization, stored=self.quantisation is not None)
        else:
            names = ("architectures", "model_type", "is_decoder")
            refuse_other_heads(*map(self.settings.get, names))
        refuse_twice(self.quantisation, engine.quantization)
        layers = stored_layers(self.quantisation, self.tensors)
        for layer in layers.values():
            layer.check(*layer.shape)
        own = self.dtype if device == "cuda" else "float32"
        return Sizing(
            plain_tensors(self.tensors, layers.values()),
            self.settings | ({"tie_word_embeddings": False} if stores_head(layers) else {}),
            engine,
            own if engine.dtype == "auto" else engine.dtype,
            device,
            stored=tuple(layers.values()),
            embeds=embedding,
        )


class HttpFiles(Files, Protocol):
    """Files that can be read over HTTP, and so in part."""

    def source(
        self, location: str, path: str, size: int | None = None
    ) -> stream.FileRequest | None:
        """The HTTP source of a file; None if only the object store's own client can read it."""
        ...


def outline(model: ModelConfig) -> Outline:
    """The outline of the configured model. Raises errors.Fatal;
    ConfigInvalid if the store sends whole files only."""
    if model.mlflow is not None:
        return _of_registry(MlflowRegistry(model.mlflow.tracking_uri), model.mlflow)
    if model.path is not None:
        return of_folder(Path(model.path))
    if model.uri is None:
        raise ConfigInvalid(
            "no model is named: give a folder or a uri, or set model.mlflow, model.path or"
            " model.uri"
        )
    if model.uri.startswith("file://"):
        return of_folder(Path(unquote(urlparse(model.uri).path)))
    server = model.tracking_uri or os.environ.get(ENV_MLFLOW_TRACKING_URI, "")
    reference = Reference(model.uri, server, model.sub_path or "")
    files = files_of(reference)
    found = find(reference, _once)
    if isinstance(found, MlflowVersion):
        return _of_registry(MlflowRegistry(server), found)
    return of_files(files, found.location, found.sub_path)


def _once(what: str, attempt: Callable[[], str]) -> str:
    """Run `attempt` without retries: a person is waiting for the command."""
    try:
        return attempt()
    except Exception as error:
        raise fatal_of(error, what) from error


def of_folder(folder: Path) -> Outline:
    """The outline of a local folder, in any layout that can be served."""
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder")
    located = locate(local_artifacts(folder))
    home = folder / located.folder
    settings = settings_of((home / CONFIG).read_bytes())
    beside = home / GPTQ_CONFIG
    quantisation = _quantisation(settings, beside.read_bytes() if beside.is_file() else b"{}")
    described = is_sentence_model(located.files)
    return Outline(str(home), settings, tensors_of(home), quantisation, described)


def of_files(registry: Any, location: str, sub_path: str = "") -> Outline:
    """The outline of the artifacts at `location`."""
    try:
        sizes = registry.sizes(location)
    except Exception as error:
        raise fatal_of(error, f"listing {location}") from error
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = Artifacts(sizes, lambda path: _small(registry, location, path, Path(scratch)))
        located = locate(artifacts, sub_path)
        settings = settings_of(artifacts.read(located.files[CONFIG]))
        beside = located.files.get(GPTQ_CONFIG)
        quantisation = _quantisation(settings, artifacts.read(beside) if beside else b"{}")
    headers = _headers(registry, location, located, sizes)
    return Outline(location, settings, headers, quantisation, is_sentence_model(located.files))


def settings_of(content: bytes) -> dict[str, Any]:
    """The language model's settings in a config.json.
    Raises ModelCorrupt, and ModelUnsupported as `load` does."""
    try:
        whole = json.loads(content)
        inner: dict[str, Any] = next(
            (whole[name] for name in _INNER if isinstance(whole.get(name), dict)), {}
        )
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelCorrupt(
            f"{CONFIG} is not a JSON object: {type(error).__name__}; upload it again"
        ) from error
    if whole.get("is_encoder_decoder"):
        raise ModelUnsupported(
            "the model is an encoder-decoder model; this runtime serves decoder-only ones"
        )
    # What the model is, its whole configuration says.
    kind = {"architectures": whole["architectures"]} if "architectures" in whole else {}
    return {**whole, **inner, **kind}


def _quantisation(settings: Mapping[str, Any], beside: bytes) -> Quantisation | None:
    """The quantisation according to config.json's `settings` or the content of GPTQ_CONFIG."""
    try:
        found = json.loads(beside)
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(f"{GPTQ_CONFIG} is not JSON: {error}; upload the file again") from error
    return quantisation_of(settings, found)


def _of_registry(registry: Registry, version: MlflowVersion) -> Outline:
    try:
        location = registry.resolve(version)
    except Exception as error:
        raise fatal_of(
            error, f"resolving model {version.name} version {version.version}"
        ) from error
    return of_files(registry, location, version.sub_path)


def _small(registry: Files, location: str, path: str, scratch: Path) -> bytes:
    """A small file that is read whole: MLmodel, config.json, the index of shards."""
    part = Part(scratch, posixpath.basename(path))
    part.discard()
    try:
        registry.download(location, path, part)
        return part.path.read_bytes()
    except Exception as error:
        raise fatal_of(error, f"reading {path}") from error


def _headers(
    registry: HttpFiles, location: str, located: Located, sizes: Mapping[str, int | None]
) -> dict[str, dict[str, Any]]:
    tensors: dict[str, dict[str, Any]] = {}
    for name, path in located.files.items():
        if name.endswith(".safetensors"):
            tensors |= _header(registry, location, path, sizes[path])
    return tensors


def _header(registry: HttpFiles, location: str, path: str, size: int | None) -> dict[str, Any]:
    source = registry.source(location, path, size)
    if source is None or size is None:
        raise ConfigInvalid(
            f"the store at {location} hands out whole files only; fetch the model (`llm-runtime"
            " fetch`) and name its folder instead"
        )
    try:
        with stream.beginning(source.get, MAX_HEADER_BYTES + 8) as read:
            return header_of(path, size, read)
    except Exception as error:
        raise fatal_of(error, f"reading the header of {path}") from error
