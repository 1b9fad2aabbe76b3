"""Replaces the linear layers of a model by layers of 8-bit or 4-bit integers, one by one."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from llm_runtime.compute import int4, int8, products
from llm_runtime.compute.embeddings import MODELS, SharedEmbedding
from llm_runtime.errors import ModelCorrupt
from llm_runtime.files.fit import KEPT_INT8
from llm_runtime.machine.heap import Replaced

Kind = Literal["int8", "int4"]
LEAST_COUNT = 1e-3
"""What an input counts at least in the error of its weight, beside the layer's mean."""


def quantize(model: nn.Module, forward: Callable[[], object], device: str, kind: Kind) -> int:
    """Replace the linear layers of `model`, which is in host memory and will run on `device`, in
    place. Returns the bytes saved. Raises ModelCorrupt for weights without a scale.

    Layers of KEPT_INT8 become int8 in any case: rounding costs most there for their size. So does
    the output layer on a CPU of models whose code is known (`embeddings.MODELS`); where it shares
    its weight with the embedding, the embedding's rows are read from it. What stays as it is:
    - other output layers: a GPU would dequantise all of it at each step, and some models ask an
      output layer for its weight's number format (Mamba);
    - those that are never called when `forward` runs the model:
      it then uses their weight directly (Jamba's `dt_proj`);
    - others whose weight is shared with another module,
      because a quantised copy beside the original would cost memory.
    """
    inputs = _inputs(model, forward)
    names = {path.rpartition(".")[2] for path in inputs}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    known = device == "cpu" and type(model).__name__ in MODELS
    tied = _tied(model, head) if known else None
    kept = _shared_weights(model)
    if tied is not None:
        kept.remove(id(tied.weight))
    if not known and head is not None:
        kept.add(id(head.weight))
    saved = 0
    replaced = Replaced()
    # `pop` drops the reference to each layer,
    # so that its old weight is freed as soon as it is replaced.
    remaining = list(model.named_modules())[::-1]
    while remaining:
        path, module = remaining.pop()
        parent, _, name = path.rpartition(".")
        if type(module) is not nn.Linear or name not in names or id(module.weight) in kept:
            continue
        counts = _counts(inputs.get(path))
        wide = module is head or name in KEPT_INT8
        replacement = _quantised(module, path, counts, device, "int8" if wide else kind)
        size = module.weight.nbytes
        saved += size - sum(
            part.nbytes for kind_of, part in replacement.named_buffers() if kind_of != "bias"
        )
        setattr(model.get_submodule(parent), name, replacement)
        if module is head:
            if tied is not None:
                model.set_input_embeddings(SharedEmbedding(tied, replacement))
            head = tied = None
        del module
        replaced.add(size)
    return saved


def _quantised(linear: nn.Linear, path: str, counts: Any, device: str, kind: Kind) -> nn.Module:
    weight = linear.weight.detach()
    if kind == "int4":
        narrow = int4.quantize_weight(weight, counts)
        _check_finite(narrow.scale, path)
        return products.int4_layer(linear, narrow, device)
    narrow, scale = int8.quantize_weight(weight)
    _check_finite(scale, path)
    return products.int8_linear(linear, narrow, scale, device)


def _check_finite(scale: Any, path: str) -> None:
    if not scale.isfinite().all():
        raise ModelCorrupt(
            f"{path}.weight has numbers that are not finite, which have no place among integers:"
            " correct the checkpoint, or set engine.quantization to none"
        )


def _tied(model: Any, head: Any) -> Any:
    """The embedding whose rows can be read from the output layer; None if there is none."""
    embedding = model.get_input_embeddings()
    plain = type(embedding) is nn.Embedding and embedding.max_norm is None
    return embedding if plain and embedding.weight is head.weight else None


def _inputs(model: nn.Module, forward: Callable[[], object]) -> dict[str, Any]:
    """The mean square of each input of the linear layers that `forward` calls, by their paths."""
    paths = {module: path for path, module in model.named_modules() if type(module) is nn.Linear}
    squares: dict[str, Any] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        squares[paths[module]] = inputs[0].float().square().flatten(0, -2).mean(dim=0)

    hooks = [module.register_forward_pre_hook(note) for module in paths]
    forward()
    for hook in hooks:
        hook.remove()
    return squares


def _counts(squares: Any) -> Any:
    """How much an error at each input counts; an input that a few tokens left at 0 counts, too."""
    if squares is None or not squares.isfinite().all() or not squares.any():
        return None
    return (squares / squares.mean()).clamp_(min=LEAST_COUNT)


def _shared_weights(model: nn.Module) -> set[int]:
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return {key for key, count in owners.items() if count > 1}
