"""Linear layers whose weights stay in memory as a quantised checkpoint stores them.

Their products are slow, as each one dequantises the weight again, but plain: they say what a
checkpoint means. Faster layers are made from them and compared with them, and where there are none
these serve. Layouts: files/stored_layers.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llm_runtime.errors import ModelCorrupt
from llm_runtime.files.stored_layers import StoredLayer

_DTYPES = {"I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
_SHUFFLED = [0, 4, 1, 5, 2, 6, 3, 7]
"""Where AWQ's eight outputs lie in 32 bits."""
_GROUPS = ("g_idx", "weight_g_idx")
_AT_ONCE = 1 << 24
"""Weights that a product dequantises at a time: 64 MiB as float32."""
_ONES = {4: 0x11111111, 8: 0x01010101}
"""What GPTQ's zero points are less in the file, by bits. Subtracted from and added to whole words:
borrowed and carried bits go into the next zero point, and come back."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A quantised weight: (integers - zeros) * scales, of an input's group."""

    integers: Any
    """uint8 [outputs, inputs]. Inputs of a group lie together."""
    scales: Any
    """float32 [outputs, groups]"""
    zeros: Any
    """uint8 [outputs, groups]"""

    def dequantised(self) -> Any:
        """float32 [outputs, inputs]"""
        grouped = self.integers.unflatten(1, (self.scales.shape[1], -1)).float()
        grouped.sub_(self.zeros.unsqueeze(2)).mul_(self.scales.unsqueeze(2))
        return grouped.flatten(1)


class StoredLinear(nn.Module):  # type: ignore[misc]  # mypy sees no torch
    """Replaces a `torch.nn.Linear`. Its buffers have the checkpoint's names, and are empty until it
    is loaded; scales become float32. `settle` must be called before anything else."""

    def __init__(self, linear: nn.Linear, layer: StoredLayer) -> None:
        """Raises ModelCorrupt or ModelUnsupported unless `layer` is stored for such a linear."""
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.layer = layer
        layer.check(self.out_features, self.in_features)
        for name, (dtypes, shape) in layer.expected(self.out_features, self.in_features).items():
            if name in layer.tensors:
                dtype = _DTYPES.get(dtypes[0], torch.float32)
                self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return self.layer.groups(self.in_features)

    @property
    def order(self) -> Any:
        """Inputs in the order in which those of a group lie together; None where they do."""
        for name in _GROUPS:
            if (groups := getattr(self, name, None)) is not None:
                return torch.argsort(groups, stable=True)
        return None

    def settle(self) -> None:
        """Check the numbers, once they are there, and forget groups that lie together anyway.
        Raises ModelCorrupt."""
        name = self.layer.name
        if not self._scales(slice(None)).isfinite().all():
            raise ModelCorrupt(
                f"{name} has scales that are not finite: quantise the model again, or correct the"
                " checkpoint"
            )
        shape = [self.out_features, self.in_features]
        written = getattr(self, "weight_shape", None)
        if written is not None and written.tolist() != shape:
            raise ModelCorrupt(
                f"{name}.weight_shape says {written.tolist()}, but the model's layer is {shape}: save"
                " the quantised model again, with its configuration"
            )
        for name in _GROUPS:
            groups = getattr(self, name, None)
            if groups is not None and not self._scattered(name, groups):
                setattr(self, name, None)

    def unpacked(self, start: int = 0, stop: int | None = None) -> Weight:
        """The weights of some outputs; both limits are multiples of 8, or the end. Inputs are in
        `order`."""
        rows = slice(start, self.out_features if stop is None else min(stop, self.out_features))
        integers = self._integers(rows)
        if (order := self.order) is not None:
            integers = integers[:, order]
        return Weight(integers, self._scales(rows), self.zeros(rows))

    def forward(self, x: Any) -> Any:
        """[..., in_features] → [..., out_features]."""
        if (order := self.order) is not None:
            x = x.index_select(-1, order)
        out = torch.cat([F.linear(x, rows.to(x.dtype)) for rows in self._dequantised()], dim=-1)
        return out if self.bias is None else out + self.bias

    def dequantised(self, dtype: Any) -> Any:
        """The whole weight, [outputs, inputs]. Inputs are in `order`."""
        return torch.cat([rows.to(dtype) for rows in self._dequantised()])

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, {self.layer.format}"
        )

    def _dequantised(self) -> Iterator[Any]:
        rows = max(_AT_ONCE // self.in_features // 8 * 8, 8)
        for start in range(0, self.out_features, rows):
            yield self.unpacked(start, start + rows).dequantised()

    def _scattered(self, name: str, groups: Any) -> bool:
        """Whether the inputs of a group do not lie together. Raises ModelCorrupt."""
        if name == "weight_g_idx" and (groups < 0).any():
            return False  # compressed-tensors writes -1 where there is no order.
        size = self.in_features // self.groups
        counts = [int((groups == group).sum()) for group in range(self.groups)]
        if counts != [size] * self.groups:
            raise ModelCorrupt(
                f"{self.layer.name}.{name} does not put {size} inputs into each of {self.groups}"
                " groups: quantise the model again"
            )
        return not torch.equal(groups, torch.arange(self.in_features, dtype=groups.dtype) // size)

    def _integers(self, rows: slice) -> Any:
        bits = self.layer.format.bits
        match self.layer.format.layout:
            case "gptq" | "gptq_v2":
                # Words are turned, not bytes: an eighth of the work.
                return _fields(self.qweight[:, rows].t(), bits).flatten(1)[:, : self.in_features]
            case "awq":
                return _unshuffled(self.qweight, rows)
            case "pack-quantized":
                return _fields(self.weight_packed[rows], bits).flatten(1)[:, : self.in_features]
            case "int-quantized":
                return _unsigned(self.weight[rows])

    def _scales(self, rows: slice) -> Any:
        if hasattr(self, "scales"):
            return self.scales[:, rows].t()
        return self.weight_scale[rows]

    def zeros(self, rows: slice | None = None) -> Any:
        """The zero points of some outputs, or all: uint8 [outputs, groups]."""
        rows = slice(0, self.out_features) if rows is None else rows
        number_format = self.layer.format
        zeros = getattr(self, "weight_zero_point", None)
        match number_format.layout:
            case "gptq" | "gptq_v2":
                ones = _ONES[number_format.bits] if number_format.layout == "gptq" else 0
                fields = _fields(
                    self.qzeros[:, _words(rows, number_format)] + ones, number_format.bits
                )
                return fields.flatten(1).t()[: rows.stop - rows.start]
            case "awq":
                return _unshuffled(self.qzeros, rows)
            case "pack-quantized" if zeros is not None:
                fields = _fields(zeros[_words(rows, number_format)], number_format.bits)
                return fields.transpose(1, 2).flatten(0, 1)[: rows.stop - rows.start]
            case "int-quantized" if zeros is not None:
                return _unsigned(zeros[rows])
        middle = 1 << (number_format.bits - 1)
        return torch.full_like(self._scales(rows), middle, dtype=torch.uint8)


def _fields(words: Any, bits: int) -> Any:
    """int32 [..., words] → uint8 [..., words, integers], the lowest bits first."""
    data = _bytes(words)
    return data if bits == 8 else torch.stack((data & 15, data >> 4), dim=-1).flatten(-2)


def _bytes(words: Any) -> Any:
    """int32 [..., words] → uint8 [..., words, 4], the lowest byte first: all processors that we run
    on are little-endian."""
    # `contiguous` would keep odd strides of a dimension of one word, which have no view as bytes.
    whole = words.clone(memory_format=torch.contiguous_format)
    return whole.view(torch.uint8).unflatten(-1, (-1, 4))


def _words(rows: slice, number_format: Any) -> slice:
    per_word = number_format.per_word
    return slice(rows.start // per_word, -(-rows.stop // per_word))


def _unshuffled(packed: Any, rows: slice) -> Any:
    """AWQ's int32 [n, outputs / 8] → uint8 [rows, n]."""
    data = _bytes(packed[:, rows.start // 8 : -(-rows.stop // 8)].t())
    out = data.new_empty(len(data), 8, data.shape[1])
    for output, place in enumerate(_SHUFFLED):
        out[:, output] = data[..., place // 2] >> 4 * (place % 2) & 15
    return out.flatten(0, 1)[: rows.stop - rows.start]


def _unsigned(integers: Any) -> Any:
    """int8 as uint8, with 128 added."""
    return integers.view(torch.uint8) ^ 128
