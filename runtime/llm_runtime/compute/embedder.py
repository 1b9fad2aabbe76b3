"""Embeds texts: a Transformers model without a head, the pooling of its tokens' vectors, and the
modules behind it, as sentence-transformers computes them.

Texts of one step are sorted by length and run in groups, so that padding stays small. Padding is at
the end: an encoder masks it, and a decoder's tokens do not see it.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from llm_runtime.compute.exhaustion import in_memory
from llm_runtime.engine.scheduler import Batch
from llm_runtime.engine.sequence import Sampled
from llm_runtime.errors import ModelCorrupt, ModelUnsupported
from llm_runtime.files.sentence_files import Recipe, Step

GROUP_PADDING = 32
"""Tokens of padding that a group may have. About as many tokens as a call of a small model costs
beside them."""
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Identity": lambda rows: rows,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Sigmoid": torch.sigmoid,
}
"""Activations behind a Dense module, by torch's names of their classes."""

Rows = Any
"""A tensor, [texts, dimensions]."""
Way = Callable[[Rows], Rows]


class EmbeddingRunner:
    """Computes the embeddings of a step's texts. Called from one thread only."""

    def __init__(self, model: Any, recipe: Recipe, *, pad_id: int) -> None:
        """Raises ModelCorrupt or ModelUnsupported for a module of `recipe` that can't be loaded."""
        self.model = model
        self._recipe = recipe
        self._pad_id = pad_id
        self._ways = ways_of(recipe, model.device)

    def forward(self, batch: Batch) -> list[Sampled]:
        """The embedding of each span's text, in order. Raises StepOutOfMemory."""
        texts = [span.sequence.request.prompt_token_ids for span in batch.spans]
        unpooled = [span.sequence.request.unpooled_tokens for span in batch.spans]
        rows = in_memory(lambda: self.embed(texts, unpooled))
        return [Sampled(None, embedding=written(row)) for row in rows]

    def embed(self, texts: Sequence[Sequence[int]], unpooled: Sequence[int] | None = None) -> Rows:
        """The vectors of texts of token ids, [texts, dimensions], float32 on the CPU.

        `unpooled`: tokens at the beginning of each text that its vector is not made of.
        """
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
        rows: list[Any] = [None] * len(texts)
        with torch.inference_mode():
            for group in groups(order, [len(text) for text in texts]):
                found = self._group(
                    [texts[number] for number in group],
                    [unpooled[number] if unpooled else 0 for number in group],
                )
                for number, row in zip(group, found, strict=True):
                    rows[number] = row
            return torch.stack(rows)

    def read_adapter(self, folder: Path) -> Any:
        """Refuse: adapters are for models that generate."""
        raise ModelUnsupported("a model for embeddings takes no adapters: merge it into the model")

    def install_adapter(self, key: str, adapter: Any) -> None:
        """Never called, as no adapter is read."""

    def drop_adapter(self, key: str) -> None:
        """Never called, as no adapter is read."""

    def _group(self, texts: list[Sequence[int]], unpooled: list[int]) -> Rows:
        device = self.model.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        width = len(texts[0])
        ids = [[*text, *[self._pad_id] * (width - len(text))] for text in texts]
        positions = torch.arange(width, device=device)
        mask = (positions < lengths[:, None]).long()
        hidden = self.model(
            input_ids=torch.tensor(ids, device=device), attention_mask=mask
        ).last_hidden_state
        begins = torch.minimum(torch.tensor(unpooled, device=device), lengths - 1)
        rows = pooled(hidden, begins, lengths, self._recipe.poolings)
        for way in self._ways:
            rows = way(rows)
        return rows.float().cpu()


def groups(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts that are computed together. `order` has their numbers, the longest first."""
    group: list[int] = []
    padding = 0
    for number in order:
        padding += lengths[group[0]] - lengths[number] if group else 0
        if padding > GROUP_PADDING:
            yield group
            group = []
            padding = 0
        group.append(number)
    if group:
        yield group


def pooled(hidden: Any, begins: Any, ends: Any, poolings: Sequence[str]) -> Rows:
    """One vector for each text, of the tokens from `begins` to `ends` of `hidden`, [texts, tokens,
    size]. Several poolings are joined. As in `Pooling` of sentence-transformers."""
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (positions >= begins[:, None]) & (positions < ends[:, None])
    weights = inside.float()[..., None]
    texts = torch.arange(hidden.shape[0], device=hidden.device)
    values = hidden.float()
    counts = weights.sum(dim=1)

    def one(pooling: str) -> Rows:
        match pooling:
            case "cls":
                return values[texts, begins]
            case "lasttoken":
                return values[texts, ends - 1]
            case "max":
                return values.masked_fill(~inside[..., None], float("-inf")).amax(dim=1)
            case "mean":
                return (values * weights).sum(dim=1) / counts
            case "mean_sqrt_len_tokens":
                return (values * weights).sum(dim=1) / counts.sqrt()
            case "weightedmean":  # Muennighoff 2022 (SGPT): later tokens have seen more.
                scaled = weights * (positions + 1.0)[None, :, None]
                return (values * scaled).sum(dim=1) / scaled.sum(dim=1)
        raise ModelUnsupported(f"there is no pooling {pooling}")

    return torch.cat([one(pooling) for pooling in poolings], dim=-1)


def ways_of(recipe: Recipe, device: Any) -> list[Way]:
    """What is done with a pooled vector, in order."""
    ways = [_way(step, device) for step in recipe.steps]
    if recipe.cut_to:
        ways.append(lambda rows: rows[:, : recipe.cut_to])
    return ways


def written(row: Any) -> str:
    """A vector as `TokenEvent.text` has it; "" for one that is not all numbers."""
    if not bool(torch.isfinite(row).all()):
        return ""
    # Little-endian as this program's machines are.
    return base64.b64encode(row.contiguous().numpy().tobytes()).decode()


def _way(step: Step, device: Any) -> Way:
    if step.kind == "Normalize":
        return lambda rows: F.normalize(rows, p=2, dim=-1)
    tensors = _tensors(step, device)
    if step.kind == "LayerNorm":
        weight = _taken(step, tensors, "norm.weight")
        bias = _taken(step, tensors, "norm.bias")
        return lambda rows: F.layer_norm(rows, weight.shape, weight, bias)
    return _dense(step, tensors)


def _dense(step: Step, tensors: dict[str, Any]) -> Way:
    weight = _taken(step, tensors, "linear.weight")
    bias = _taken(step, tensors, "linear.bias") if step.settings.get("bias", True) else None
    # As there, an activation that is none of torch's modules counts as Tanh.
    name = str(step.settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = ACTIVATIONS.get(name.rpartition(".")[2]) if name.startswith("torch.nn.") else None
    if activation is None:
        raise ModelUnsupported(
            f"a Dense module has the activation {name}; this runtime knows {', '.join(ACTIVATIONS)}"
        )
    if not step.settings.get("use_residual"):
        return lambda rows: activation(F.linear(rows, weight, bias))
    across = None
    if weight.shape[0] != weight.shape[1]:
        across = _taken(step, tensors, "residual.weight")

    def with_residual(rows: Rows) -> Rows:
        beside = rows if across is None else F.linear(rows, across)
        return activation(F.linear(rows, weight, bias)) + beside

    return with_residual


def _tensors(step: Step, device: Any) -> dict[str, Any]:
    assert step.weights is not None
    tensors = {name: tensor.float() for name, tensor in load_file(step.weights).items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _taken(step: Step, tensors: dict[str, Any], name: str) -> Any:
    if name not in tensors:
        raise ModelCorrupt(f"{step.weights} holds no {name}; save the model again")
    return tensors[name]


def dimensions(runner: EmbeddingRunner, probe: Sequence[int]) -> int:
    """Length of the runner's vectors, by one that it makes. Raises ModelCorrupt or ModelUnsupported
    where the modules do not fit each other, or the model does not run."""
    try:
        return int(runner.embed([probe]).shape[-1])
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelUnsupported(
            f"{type(runner.model).__name__} gives no embedding as configured: {error}"
        ) from error


def difference(one: Rows, other: Rows) -> float:
    """How far two vectors are from each other, as a part of the first one's length."""
    return float((one - other).norm() / one.norm().clamp(min=1e-12))
