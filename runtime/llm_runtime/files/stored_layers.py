"""Quantised linear layers as the headers of a checkpoint's files show them: which layers there are,
and whether each has the tensors and shapes that its format asks for.

The layouts, with N outputs, K inputs, G groups and p integers in 32 bits. Integers lie from the
lowest bits up:

layout          integers                        scales             zero points
gptq, gptq_v2   qweight [K/p, N]                scales [G, N]      qzeros [G, N/p], of gptq one less
awq             qweight [K, N/p], shuffled      scales [G, N]      qzeros [G, N/p], shuffled
pack-quantized  weight_packed [N, K/p]          weight_scale [N, G]  weight_zero_point [N/p, G] or none
int-quantized   weight [N, K], int8             weight_scale [N, 1]  weight_zero_point [N, 1] or none

Sources: ModelCloud's GPTQModel, AutoAWQ's gemm.py, and compressed-tensors' compressors.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_runtime.errors import ModelCorrupt
from llm_runtime.files.quantised import WHOLE_ROW, Format, Quantisation, refused

FLOATS = ("F16", "BF16", "F32")
_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gptq": (("qweight", "scales", "qzeros"), ("g_idx",)),
    "gptq_v2": (("qweight", "scales", "qzeros"), ("g_idx",)),
    "awq": (("qweight", "scales", "qzeros"), ()),
    "pack-quantized": (("weight_packed", "weight_scale", "weight_shape"), ("weight_g_idx",)),
    "int-quantized": (("weight", "weight_scale"), ("weight_zero_point",)),
}
"""Tensors that a layer of a layout must have, the integers first, and those that it may have.
`g_idx` names the group of each input, where those of a group do not lie together."""
_NAMES = frozenset(name for parts in _PARTS.values() for name in sum(parts, ())) - {"weight"}
"""Last parts of names that only quantised layers have."""
HEADS = ("lm_head", "embed_out", "output_projection")
"""Last parts of names that mean an output layer."""
_UNMISTAKABLE = frozenset({"qweight", "weight_packed"})

Tensors = Mapping[str, Mapping[str, Any]]
"""`dtype` and `shape` of tensors, as a safetensors header has them."""


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A quantised layer of a checkpoint. `tensors`: those of its own, by the last part of the name."""

    name: str
    format: Format
    tensors: Tensors

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs, as far as the tensors say: padding counts as inputs where a row has
        one scale."""
        rows, columns = self.tensors[_PARTS[self.format.layout][0][0]]["shape"]
        per_word = self.format.per_word
        if "g_idx" in self.tensors:
            return columns, self.tensors["g_idx"]["shape"][0]
        if self.format.layout in ("gptq", "gptq_v2"):
            return columns, rows * per_word
        if self.format.layout == "awq":
            return columns * per_word, rows
        if self.format.layout == "int-quantized":
            return rows, columns
        if self.format.group == WHOLE_ROW:
            return rows, columns * per_word
        return rows, self.tensors["weight_scale"]["shape"][-1] * self.format.group

    def group_size(self, inputs: int) -> int:
        """Inputs that share a scale, of a layer with so many inputs."""
        return inputs if self.format.group == WHOLE_ROW else self.format.group

    def groups(self, inputs: int) -> int:
        """Groups of `inputs`. Raises ModelUnsupported where they do not divide."""
        size = self.group_size(inputs)
        if inputs % size:
            raise refused(
                f"groups of {size} do not divide the {inputs} inputs of {self.name}: it was"
                " quantised with a group size that does not suit the model"
            )
        return inputs // size

    def expected(self, outputs: int, inputs: int) -> dict[str, tuple[tuple[str, ...], list[int]]]:
        """Number formats and shape of each tensor of a layer with so many outputs and inputs."""
        layout = self.format.layout
        groups = self.groups(inputs)
        words = math.ceil(outputs / self.format.per_word)
        if layout in ("gptq", "gptq_v2"):
            found = {
                "qweight": (("I32",), [math.ceil(inputs / self.format.per_word), outputs]),
                "scales": (FLOATS, [groups, outputs]),
                "qzeros": (("I32",), [groups, words]),
                "g_idx": (("I32",), [inputs]),
            }
        elif layout == "awq":
            found = {
                "qweight": (("I32",), [inputs, words]),
                "scales": (FLOATS, [groups, outputs]),
                "qzeros": (("I32",), [groups, words]),
            }
        elif layout == "int-quantized":
            found = {
                "weight": (("I8",), [outputs, inputs]),
                "weight_scale": (FLOATS, [outputs, 1]),
                "weight_zero_point": (("I8",), [outputs, 1]),
            }
        else:
            columns = math.ceil(inputs / self.format.per_word)
            found = {
                "weight_packed": (("I32",), [outputs, columns]),
                "weight_scale": (FLOATS, [outputs, groups]),
                "weight_shape": (("I64", "I32"), [2]),
                "weight_g_idx": (("I32",), [inputs]),
            }
            if not self.format.symmetric:
                found["weight_zero_point"] = (("I32",), [words, groups])
        return found

    def check(self, outputs: int, inputs: int) -> None:
        """Raise ModelCorrupt unless the tensors have the shapes of a layer of so many outputs and
        inputs, and ModelUnsupported where groups do not divide its inputs."""
        expected = self.expected(outputs, inputs)
        for name, tensor in self.tensors.items():
            dtypes, shape = expected[name]
            if list(tensor["shape"]) != shape or tensor["dtype"] not in dtypes:
                raise _corrupt(
                    f"{self.name}.{name} is {tensor['dtype']} of shape {list(tensor['shape'])}, but"
                    f" {outputs} outputs and {inputs} inputs as {self.format} take"
                    f" {' or '.join(dtypes)} of shape {shape}"
                )


def stored_layers(quantisation: Quantisation | None, tensors: Tensors) -> dict[str, StoredLayer]:
    """The quantised layers among `tensors`, by name. Their shapes are not checked.

    Raises ModelCorrupt for tensors that are missing, or that no configuration describes, and
    ModelUnsupported.
    """
    marks = _UNMISTAKABLE if quantisation is None else _NAMES
    names = {
        name.rpartition(".")[0]
        for name, tensor in tensors.items()
        if (last := name.rpartition(".")[2]) in marks
        or (last == "weight" and tensor["dtype"] == "I8")
    }
    if names and quantisation is None:
        raise _corrupt(
            f"{min(names)} is stored quantised, but neither config.json nor quantize_config.json says"
            " how"
        )
    return {
        name: _stored_layer(name, quantisation.format_of(name), tensors)
        for name in sorted(names)
        if quantisation is not None
    }


def stores_head(layers: Iterable[str]) -> bool:
    """Whether the output layer is among `layers`. It is then not the embedding, whatever
    tie_word_embeddings says."""
    return any(name.rpartition(".")[2] in HEADS for name in layers)


def plain_tensors(tensors: Tensors, layers: Iterable[StoredLayer]) -> dict[str, Mapping[str, Any]]:
    """The tensors that are not parts of a quantised layer."""
    parts = {f"{layer.name}.{last}" for layer in layers for last in layer.tensors}
    return {name: tensor for name, tensor in tensors.items() if name not in parts}


def _stored_layer(name: str, number_format: Format, tensors: Tensors) -> StoredLayer:
    required, optional = _PARTS[number_format.layout]
    if number_format.layout == "pack-quantized" and not number_format.symmetric:
        required = (*required, "weight_zero_point")
    own = {
        last: tensors[f"{name}.{last}"]
        for last in sorted(_NAMES | {"weight"})
        if f"{name}.{last}" in tensors
    }
    missing = [last for last in required if last not in own]
    strange = sorted(own.keys() - {*required, *optional})
    if missing or strange:
        faults = [f"no {last}" for last in missing] + [f"a {last}" for last in strange]
        raise _corrupt(f"{name} is to be {number_format}, but has {' and '.join(faults)}")
    dimensions = {**dict.fromkeys(required[:2], 2), "g_idx": 1}
    for last, count in dimensions.items():
        if last in own and len(own[last]["shape"]) != count:
            raise _corrupt(f"{name}.{last} has {len(own[last]['shape'])} dimensions, not {count}")
    return StoredLayer(name, number_format, own)


def _corrupt(what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{what}: save the quantised model again, with its configuration")
