"""Whether a model fits into memory, computed from config.json and safetensors headers before any
weight is read.

Needs no torch: the caller says how much memory is free.
Proposals in a refusal are computed the same way, so they fit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_runtime.contract import EngineConfig
from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool
from llm_runtime.errors import OutOfMemory
from llm_runtime.files.kv import first_number, token_numbers
from llm_runtime.files.locate import INDEX, WEIGHTS, index_shards
from llm_runtime.files.stored_layers import HEADS, StoredLayer
from llm_runtime.files.verify import safetensors_header
from llm_runtime.machine.memory import KV_CACHE_FIELD, MIB

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CACHE_FRACTION = 0.8
"""Share of the memory free after loading that the key-value cache may take.
Activations need the rest."""
SERVING_BYTES = 256 * MIB
"""What the two processes on a CPU take after the cache is sized, without logits.
Measured with SmolLM2-135M."""
PROCESS_BYTES = SERVING_BYTES + 48 * MIB
"""What they take from this check on, without weights and cache.
The tokenizer is loaded before the cache is sized."""
LOGITS_COPIES = 4
"""Copies of a sequence's logits that sampling holds at once:
raw, with penalties, with temperature, filtered."""
ROWS_OF_HIDDEN = 8
ROWS_OF_INNER = 2
"""What one layer of an encoder holds at once for each token of a step: queries, keys, values, what
comes of them, and the residual; twice the inner layer, before and after its activation."""
CPU_STEP_TOKENS = 512
"""Most tokens of a step on a CPU.
More rows at once are no faster, and no request can join or leave during a step."""
CPU_EMBEDDING_TOKENS = 1024
"""The same of texts to embed. Of more texts, more are of one length: 1024 tokens are a sixth faster
than 512, and 2048 no faster than these."""
STARTED_BYTES = 560 * MIB
"""What they have taken before this check:
447 MiB in the process with torch, 83 MiB in the other."""
START_DIFFERENCE_BYTES = 16 * MIB
"""How much more another start of the same server may have taken before this check."""
LIMIT_STEP_BYTES = 32 * MIB
"""A proposed memory limit is rounded up to a multiple of this."""
LEAST_LENGTH = 256
"""The shortest maxModelLength that is proposed.
With less, a server would start but be of no use."""

UNPACKED_COPIES = 3
"""Bytes for each weight of a layer that is stored quantised, while it is unpacked and packed again."""

_STORED_BYTES = {
    "I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of numbers that are not floating-point:
they keep their size, whatever the configured dtype."""
_LINEARS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "out_proj",
    "fc1", "fc2", "dense", "query_key_value", "dense_h_to_4h", "dense_4h_to_h",
)  # fmt: skip
"""Last parts of names that mean a linear layer in every architecture that uses them."""
KEPT_INT8 = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "o_proj", "down_proj", "out_proj", "fc2", "dense",
    "dense_4h_to_h",
)  # fmt: skip
"""Linear layers of attention, and those that write to the residual stream: with int4 they are int8."""
_OWN_LINEARS = {"falcon"}
"""Architectures that define their own class of linear layer, which is not quantised."""
_INT4_GROUP = 32
_INT4_GROUP_BYTES = 16 + 2 + 1
"""32 numbers of 4 bits, a scale and a zero point, as in compute.int4."""
ONE_COPY = {"llama", "mistral", "qwen2", "qwen3"}
"""Architectures of compute.embeddings.MODELS: an embedding stays as it was stored, the output layer
is quantised, too, and the two are in memory once if they are tied."""
_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "wpe",
    "embed_in",
    "embed_positions",
    "tok_embeddings",
    "word_embeddings",
)


def most_positions(settings: Mapping[str, Any]) -> int:
    """Tokens of a sequence that a model of this configuration was made for; 0 if it does not say.

    YaRN (Peng et al. 2023) extends the trained length by a factor,
    and leaves max_position_embeddings unchanged.
    """
    named = first_number(settings, "max_position_embeddings", "n_positions", "max_seq_len")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling")
    if isinstance(rope, Mapping) and isinstance(rope.get("full_attention"), Mapping):
        rope = rope["full_attention"]
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) != "yarn":
        return named
    factor = rope.get("factor")
    original = rope.get("original_max_position_embeddings") or named
    if (
        not isinstance(original, int)
        or isinstance(factor, bool)
        or not isinstance(factor, int | float)
    ):
        return named
    return max(named, int(factor * original)) if math.isfinite(factor) else named


def embedding_tokens(engine: EngineConfig, device: str) -> int:
    """Most tokens of the texts that are embedded in one step, if they are not one text."""
    most = engine.max_batch_tokens
    return min(most, CPU_EMBEDDING_TOKENS) if device == "cpu" else most


@dataclass(frozen=True, slots=True)
class Need:
    """Memory in bytes. `loading` is the peak while loading, before weights are quantised."""

    weights: int
    loading: int
    cache: int
    reserve: int

    @property
    def total(self) -> int:
        return max(self.weights + self.cache + self.reserve, self.loading)


@dataclass(frozen=True, slots=True)
class Sizing:
    """Everything that decides how much memory a model takes.
    `settings` is config.json's part for the text model."""

    tensors: Mapping[str, Any]
    settings: Mapping[str, Any]
    engine: EngineConfig
    dtype: str
    device: str
    limit_bytes: int | None = None
    """The container's memory limit on a CPU, from which a refusal computes a sufficient one;
    None if unknown."""
    stored: tuple[StoredLayer, ...] = ()
    """Layers that the checkpoint holds quantised. Their tensors are not among `tensors`."""
    embeds: bool = False
    """Whether it serves embeddings: then it has no output layer, and keeps no keys and values."""

    @property
    def length(self) -> int:
        """Most tokens of a sequence: as configured, but no more than the model was made for."""
        most = most_positions(self.settings)
        return min(self.engine.max_model_length, most or self.engine.max_model_length)

    @property
    def cache_dtype(self) -> str:
        """Number format of keys and values."""
        wanted = self.engine.kv_cache_dtype
        return self.dtype if wanted == "auto" else wanted

    def changed(self, dtype: str = "", **engine: Any) -> "Sizing":
        """This sizing with another dtype or other fields of `engine`."""
        return replace(
            self, dtype=dtype or self.dtype, engine=self.engine.model_copy(update=engine)
        )


def tensors_of(folder: Path) -> dict[str, Any]:
    """The headers of the files that are loaded: the shards of the index, or model.safetensors.
    Raises ModelCorrupt."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        shards = set(index_shards((folder / INDEX).read_bytes()).values())
        files = [file for file in files if file.name in shards]
    elif folder / WEIGHTS in files:
        files = [folder / WEIGHTS]
    return {name: tensor for file in files for name, tensor in safetensors_header(file).items()}


def check_fit(sizing: Sizing, free_bytes: int) -> Need:
    """The memory needed. Raises OutOfMemory that says what is needed,
    what is free and what would fit."""
    need = needed(sizing)
    if _fits(sizing, need, free_bytes):
        return need
    asked = as_asked(sizing)
    limit = sizing.engine.kv_cache_bytes
    there = f"{_mib(max(free_bytes, 0))} are free{' on the GPU' if sizing.device == 'cuda' else ''}"
    if limit is not None and need.cache > limit:
        there += f", and {KV_CACHE_FIELD} allows {_mib(limit)} for keys and values"
    enough = ""
    if sizing.limit_bytes is not None and need.total > free_bytes:
        enough_bytes = sizing.limit_bytes + need.total - free_bytes + START_DIFFERENCE_BYTES
        more = f"a memory limit of {_mib(-(-enough_bytes // LIMIT_STEP_BYTES) * LIMIT_STEP_BYTES)}"
        enough = f", which {more} leaves instead of {_mib(sizing.limit_bytes)}"
    raise OutOfMemory(
        f"the model does not fit: it needs {_mib(need.total)} ({_parts(sizing, need, asked)}), but {there}. "
        f"What would fit: {'; '.join(ways_out(sizing, free_bytes))}{enough}"
    )


def verdict(sizing: Sizing, free_bytes: int) -> tuple[str, ...]:
    """What would fit instead; empty if `sizing` fits."""
    return () if _fits(sizing, needed(sizing), free_bytes) else tuple(ways_out(sizing, free_bytes))


def needed(sizing: Sizing, *, surely: bool = False) -> Need:
    """Bytes that `sizing` takes with one sequence of full length.

    Names of tensors only suggest which layers are quantised, and measuring at start-up decides
    which stay in the bfloat16 that they were stored in. With `surely`, only what leaves no doubt
    counts as shrunk (for proposals, which must fit), otherwise all that may be (for refusals, which
    must be right).
    """
    whole = weight_bytes(sizing.tensors, sizing.settings, sizing.dtype)
    whole += sum(_served_bytes(layer, sizing.device) for layer in sizing.stored)
    weights = whole - _saves(sizing, surely=surely)
    cache = _sequence_cache(sizing)
    spared = 0 if sizing.engine.kv_cache_bytes else math.ceil(cache / CACHE_FRACTION) - cache
    reserve = max(spared, _activations(sizing))
    if sizing.device != "cpu":
        return Need(weights, 0, cache, reserve)
    # Packing a layer (engine.linears) briefly needs a second copy of it,
    # so the largest one counts twice.
    beside = PROCESS_BYTES + _largest_linear(sizing)
    return Need(weights, whole + beside, cache, reserve + _head_copy(sizing, surely) + beside)


def _sequence_cache(sizing: Sizing) -> int:
    if sizing.embeds:
        return 0
    return cache_bytes(sizing.settings, sizing.length, sizing.cache_dtype)


def _activations(sizing: Sizing) -> int:
    if not sizing.embeds:
        vocabulary = first_number(sizing.settings, "vocab_size")
        return activation_bytes(vocabulary, sizing.engine.max_batch_size)
    hidden = first_number(sizing.settings, "hidden_size", "n_embd", "d_model", "dim")
    inner = first_number(sizing.settings, "intermediate_size", "n_inner", "d_ff", "hidden_dim")
    tokens = max(sizing.length, embedding_tokens(sizing.engine, sizing.device))
    return tokens * (ROWS_OF_HIDDEN * hidden + ROWS_OF_INNER * (inner or 4 * hidden)) * 4


def weight_bytes(tensors: Mapping[str, Any], settings: Mapping[str, Any], dtype: str) -> int:
    """Bytes of the weights as `dtype`.
    An output layer that is tied to the embedding is counted once."""
    tied = {f"{name}.weight" for name in HEADS} if settings.get("tie_word_embeddings") else set()
    return sum(
        math.prod(tensor["shape"]) * _STORED_BYTES.get(tensor["dtype"], DTYPE_BYTES[dtype])
        for name, tensor in tensors.items()
        if name not in tied
    )


def cache_bytes(settings: Mapping[str, Any], tokens: int, dtype: str) -> int:
    """Bytes of one sequence's keys and values, in whole blocks. 0 for an unknown architecture."""
    whole, chunk = token_numbers(settings)
    blocks = BlockPool.needed(tokens) * BLOCK_TOKENS
    bounded = min(blocks, settings.get("attention_chunk_size") or blocks)
    return (whole * blocks + chunk * bounded) * DTYPE_BYTES[dtype]


def ways_out(sizing: Sizing, free_bytes: int) -> list[str]:
    """Ways to make it fit: single changes if one is enough, else a combination;
    always the memory it would need."""
    found = [*_smaller_weights(sizing, free_bytes)]
    if length := _longest(sizing, free_bytes):
        found.append(f"engine.maxModelLength {length}")
    if size := _largest_batch(sizing, free_bytes):
        found.append(f"engine.maxBatchSize {size}")
    if not found:
        found = _smaller_and_shorter(sizing, free_bytes)
    need = needed(sizing)
    limit = sizing.engine.kv_cache_bytes
    more = [f"{_mib(need.total)} of free memory"] if need.total > free_bytes else []
    more += [f"{KV_CACHE_FIELD}: {need.cache}"] if limit is not None and need.cache > limit else []
    return [*found, " and ".join(more)]


def _fits(sizing: Sizing, need: Need, free_bytes: int) -> bool:
    limit = sizing.engine.kv_cache_bytes
    return need.total <= free_bytes and (limit is None or need.cache <= limit)


def _weights_to_try(sizing: Sizing) -> list[tuple[str, Sizing]]:
    tries = []
    smaller = sizing.dtype == "float32"
    if smaller:
        tries.append(("engine.dtype bfloat16", sizing.changed("bfloat16")))
    fixed = sizing.stored or sizing.embeds
    kinds = () if fixed else _smaller_kinds(sizing.engine.quantization)
    for kind in kinds:
        words = f"engine.quantization {kind}"
        tries.append((words, sizing.changed(quantization=kind)))
        if smaller:
            both = sizing.changed("bfloat16", quantization=kind)
            tries.append((f"engine.dtype bfloat16 with {words}", both))
    return tries


def _smaller_kinds(quantization: str) -> tuple[str, ...]:
    kinds = ("none", "int8", "int4")
    return kinds[kinds.index(quantization) + 1 :]


def _smaller_weights(sizing: Sizing, free_bytes: int) -> list[str]:
    fitting = [
        words
        for words, other in _weights_to_try(sizing)
        if _fits(other, needed(other, surely=True), free_bytes)
    ]
    return [words for words in fitting if " with " not in words] or fitting


def _smaller_and_shorter(sizing: Sizing, free_bytes: int) -> list[str]:
    tries = [(words, _longest(other, free_bytes)) for words, other in _weights_to_try(sizing)]
    return [f"{words} and engine.maxModelLength {length}" for words, length in tries if length][:1]


def _longest(sizing: Sizing, free_bytes: int) -> int:
    """The longest maxModelLength that fits, in whole blocks, by bisection;
    0 if no useful one does."""
    least = -(-LEAST_LENGTH // BLOCK_TOKENS)
    most = (sizing.length - 1) // BLOCK_TOKENS

    def fits(blocks: int) -> bool:
        other = sizing.changed(max_model_length=blocks * BLOCK_TOKENS)
        return _fits(other, needed(other, surely=True), free_bytes)

    if most < least or not fits(least):
        return 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least * BLOCK_TOKENS


def _largest_batch(sizing: Sizing, free_bytes: int) -> int:
    """The largest maxBatchSize that fits among repeated halves of the configured one;
    0 if none does."""
    size = sizing.engine.max_batch_size // 2
    while size:
        other = sizing.changed(max_batch_size=size)
        if _fits(other, needed(other, surely=True), free_bytes):
            return size
        size //= 2
    return 0


def activation_bytes(vocabulary: int, sequences: int) -> int:
    """Bytes of one step's largest intermediate results: float32 logits of each sequence."""
    return LOGITS_COPIES * 4 * vocabulary * sequences


def _head_copy(sizing: Sizing, surely: bool) -> int:
    """Bytes of the tied output layer's copy on a CPU: it is packed for multiplication, which the
    embedding can't be. In ONE_COPY a packed or quantised layer may be, or is, the embedding, too."""
    quantised = sizing.engine.quantization != "none"
    once = sizing.settings.get("model_type") in ONE_COPY and (quantised or not surely)
    return 0 if once else _tied_head(sizing) * DTYPE_BYTES[sizing.dtype]


def _tied_head(sizing: Sizing) -> int:
    """Weights of an output layer on a CPU that is tied to the embedding."""
    if sizing.device != "cpu" or sizing.embeds or not sizing.settings.get("tie_word_embeddings"):
        return 0
    vocabulary = first_number(sizing.settings, "vocab_size")
    size = first_number(sizing.settings, "hidden_size", "n_embd")
    return vocabulary * size


def _largest_linear(sizing: Sizing) -> int:
    """Bytes of the largest layer that is packed, or unpacked because it was stored quantised.
    A tied output layer is packed, too, but is not among the tensors."""
    sizes = [
        int(math.prod(tensor["shape"]))
        for name, tensor in sizing.tensors.items()
        if _is_linear(name, tensor, surely=False) or _is_head(name, tensor)
    ]
    unpacked = [UNPACKED_COPIES * math.prod(layer.shape) for layer in sizing.stored]
    return max([max([_tied_head(sizing), *sizes]) * DTYPE_BYTES[sizing.dtype], *unpacked])


def _saves(sizing: Sizing, *, surely: bool) -> int:
    """Bytes of the weights that integers save, or bfloat16 where weights were stored in it."""
    tied = sizing.settings.get("tie_word_embeddings")
    return sum(
        math.prod(tensor["shape"]) * DTYPE_BYTES[sizing.dtype]
        - _smaller_bytes(sizing, name, tensor, surely=surely)
        for name, tensor in sizing.tensors.items()
        if tensor["dtype"] not in _STORED_BYTES and len(tensor["shape"]) == 2
        if not (tied and _is_head(name, tensor))
    )


def _smaller_bytes(sizing: Sizing, name: str, tensor: Mapping[str, Any], *, surely: bool) -> int:
    """Bytes of a tensor of two dimensions when the server is ready."""
    outputs, inputs = tensor["shape"]
    settings = sizing.settings
    kind = sizing.engine.quantization
    on_cpu = sizing.device == "cpu"
    tied = settings.get("tie_word_embeddings")
    known = on_cpu and settings.get("model_type") in ONE_COPY
    embedding = known and _is_embedding(name)
    if kind != "none":
        if _is_linear(name, tensor, surely=surely) and not (surely and _own_linears(settings)):
            writes = name.split(".")[-2] in KEPT_INT8
            return _quantised_bytes("int8" if writes else kind, outputs, inputs)
        if (known and _is_head(name, tensor)) or (embedding and tied):
            return _quantised_bytes("int8", outputs, inputs)
    own = DTYPE_BYTES[sizing.dtype]
    if on_cpu and sizing.dtype == "float32" and tensor["dtype"] == "BF16":
        packed = _is_linear(name, tensor, surely=False) or _is_head(name, tensor)
        if (embedding and not (tied and surely)) or (packed and not surely):
            own = DTYPE_BYTES["bfloat16"]
    return int(outputs * inputs * own)


def _quantised_bytes(kind: str, outputs: int, inputs: int) -> int:
    if kind == "int4":
        return outputs * (-(-inputs // _INT4_GROUP) * _INT4_GROUP_BYTES + 4)
    return outputs * (inputs + 4)


def _served_bytes(layer: StoredLayer, device: str) -> int:
    """Bytes of a layer that is stored quantised when the server is ready."""
    outputs, inputs = layer.shape
    size = layer.group_size(inputs)
    whole = size == inputs
    if layer.format.bits == 4 and (whole or not size % _INT4_GROUP):
        return _quantised_bytes("int4", outputs, inputs)
    if layer.format.bits == 8 and whole and "weight_zero_point" not in layer.tensors:
        return _quantised_bytes("int8", outputs, inputs)
    if device == "cpu":
        return outputs * inputs * DTYPE_BYTES["bfloat16"]
    scales = -(-inputs // size) * DTYPE_BYTES["float32"]
    return outputs * (inputs * layer.format.bits // 8 + scales)


def _own_linears(settings: Mapping[str, Any]) -> bool:
    return settings.get("model_type") in _OWN_LINEARS


def _is_head(name: str, tensor: Mapping[str, Any]) -> bool:
    *_, last, kind = ["", *name.split(".")]
    return kind == "weight" and last in HEADS and len(tensor["shape"]) == 2


def _is_embedding(name: str) -> bool:
    *_, last, kind = ["", *name.split(".")]
    return kind == "weight" and last in _EMBEDDINGS


def _is_linear(name: str, tensor: Mapping[str, Any], *, surely: bool) -> bool:
    *owners, last, kind = ["", *name.split(".")]
    if kind != "weight" or len(tensor["shape"]) != 2 or last in HEADS or last in _EMBEDDINGS:
        return False
    # Transformers joins the experts of a layer in one tensor, which is no linear layer.
    return not surely or (last in _LINEARS and "experts" not in owners)


def _parts(sizing: Sizing, need: Need, asked: str) -> str:
    whole = sizing.engine.quantization != "none" and need.loading > need.weights
    loading = (
        f"; {_mib(need.loading)} for a moment, before the weights are quantised" if whole else ""
    )
    cache = (
        ""
        if sizing.embeds
        else f", keys and values of one sequence of {sizing.length} tokens {_mib(need.cache)}"
    )
    return f"weights {_mib(need.weights)} as {asked}{cache}, reserve {_mib(need.reserve)}{loading}"


def as_asked(sizing: Sizing) -> str:
    """The number format and quantisation, in words."""
    kind = "quantised as stored" if sizing.stored else sizing.engine.quantization
    return sizing.dtype if kind == "none" else f"{sizing.dtype}, {kind}"


def _mib(size: int) -> str:
    return f"{math.ceil(size / MIB)} MiB"
