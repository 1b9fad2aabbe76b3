"""Quantised checkpoints in every layout that is read, made from a plain one by packing code of our own:
word by word, as the layouts are documented, and not the inverse of what unpacks them.

Checked once by hand against what the libraries themselves pack: see test_quantised.py.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output that each four bits of AWQ's words hold, from the lowest."""
GROUP = 32


@dataclass(frozen=True)
class Layout:
    """How the layers of a checkpoint are quantised."""

    name: str
    bits: int = 4
    group: int = GROUP
    """-1: a scale for each output."""
    symmetric: bool = False
    ordered: bool = False
    """Groups are of inputs that do not lie together."""
    head: bool = False
    """The output layer, too."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of quantization_config."""

    @property
    def id(self) -> str:
        marks = {"sym": self.symmetric, "ordered": self.ordered, "head": self.head}
        return "-".join(
            [
                self.name,
                str(self.bits),
                str(self.group),
                *(word for word, on in marks.items() if on),
            ]
        )

    @property
    def config(self) -> dict[str, Any]:
        """quantization_config, as the tools write it."""
        if self.name in ("gptq", "gptq_v2"):
            own = {
                "quant_method": "gptq", "checkpoint_format": self.name, "desc_act": self.ordered,
                "sym": self.symmetric, "lm_head": self.head, "damp_percent": 0.05,
            }  # fmt: skip
        elif self.name == "awq":
            own = {"quant_method": "awq", "version": "gemm", "zero_point": True,
                   "modules_to_not_convert": None}  # fmt: skip
        else:
            return {**self._compressed(), **self.settings}
        return {"bits": self.bits, "group_size": self.group, **own, **self.settings}

    def _compressed(self) -> dict[str, Any]:
        whole = self.group == -1
        weights = {
            "num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False,
            "strategy": "channel" if whole else "group", "group_size": None if whole else self.group,
            "actorder": "group" if self.ordered else None,
        }  # fmt: skip
        tokens = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}
        activations = tokens if self.name == "int-quantized" else None
        return {
            "quant_method": "compressed-tensors", "format": self.name, "ignore": ["lm_head"],
            "quantization_status": "compressed", "kv_cache_scheme": None,
            "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": weights, "input_activations": activations,
                "output_activations": None,
            }},
        }  # fmt: skip


LAYOUTS = [
    Layout("gptq", symmetric=True),
    Layout("gptq", group=-1),
    Layout("gptq", ordered=True),
    Layout("gptq", head=True),
    Layout("gptq", bits=8),
    Layout("gptq", bits=8, group=-1, symmetric=True),
    Layout("gptq_v2"),
    Layout("gptq_v2", group=16),
    Layout("awq"),
    Layout("awq", group=64),
    Layout("pack-quantized", symmetric=True),
    Layout("pack-quantized"),
    Layout("pack-quantized", group=-1),
    Layout("pack-quantized", symmetric=True, ordered=True),
    Layout("pack-quantized", bits=8, symmetric=True),
    Layout("pack-quantized", bits=8, group=-1, symmetric=True),
    Layout("int-quantized", bits=8, group=-1, symmetric=True),
    Layout("int-quantized", bits=8, group=-1),
]


def quantise(plain: Path, folder: Path, layout: Layout) -> tuple[Path, Path]:
    """Two checkpoints beside each other: `plain` quantised, and the same with the weights that this
    stands for."""
    from safetensors.torch import load_file, save_file

    packed = Path(shutil.copytree(plain, folder / "packed"))
    twin = Path(shutil.copytree(plain, folder / "twin"))
    weights = load_file(plain / "model.safetensors")
    tensors = dict(weights)
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj") and not (layout.head and layer == "lm_head"):
            continue
        made, weights[name] = pack(weight, layout)
        del tensors[name]
        tensors |= {f"{layer}.{last}": tensor for last, tensor in made.items()}
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    save_file(weights, twin / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((packed / "config.json").read_text())
    settings["quantization_config"] = layout.config
    (packed / "config.json").write_text(json.dumps(settings))
    return packed, twin


def pack(weight: Any, layout: Layout) -> tuple[dict[str, Any], Any]:
    """The tensors of a layer in `layout`, and its dequantised weight."""
    import torch

    outputs, inputs = weight.shape
    size = inputs if layout.group == -1 else layout.group
    order = torch.randperm(inputs) if layout.ordered else torch.arange(inputs)
    group_of = torch.empty(inputs, dtype=torch.int64)
    group_of[order] = torch.arange(inputs) // size
    top = (1 << layout.bits) - 1
    middle = (top + 1) // 2
    grouped = weight[:, order].view(outputs, -1, size)
    low = grouped.amin(2).clamp(max=0)
    high = grouped.amax(2).clamp(min=0)
    if layout.symmetric:
        scale = (torch.maximum(-low, high) / (middle - 1)).half().float()
        zero = torch.full_like(scale, middle)
    else:
        scale = ((high - low) / (top - 2)).half().float()
        zero = (-low / scale).round().clamp(1, top)
    scales = scale[:, group_of]
    zeros = zero[:, group_of]
    q = (weight / scales + zeros).round().clamp(0, top)
    meant = (q - zeros) * scales
    return _LAYERS[layout.name](layout, q.long(), scale, zero.long(), group_of), meant


def words(values: Any, bits: int) -> Any:
    """[n, m] → int32 [n, m * bits / 32]: integers of a row from the lowest bits up, zeros at the end."""
    import torch

    per_word = 32 // bits
    rows, columns = values.shape
    packed = torch.zeros(rows, -(-columns // per_word), dtype=torch.int64)
    for column in range(columns):
        packed[:, column // per_word] += values[:, column] << bits * (column % per_word)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def _gptq(layout: Layout, q: Any, scale: Any, zero: Any, group_of: Any) -> dict[str, Any]:
    less = 1 if layout.name == "gptq" else 0
    return {
        "qweight": words(q, layout.bits).t().contiguous(),
        "qzeros": words(zero.t() - less, layout.bits),
        "scales": scale.t().half().contiguous(),
        "g_idx": group_of.int(),
    }


def _awq(_: Layout, q: Any, scale: Any, zero: Any, __: Any) -> dict[str, Any]:
    def shuffled(values: Any) -> Any:
        columns = values.shape[1]
        order = [base + output for base in range(0, columns, 8) for output in AWQ_OUTPUTS]
        return words(values[:, order], 4)

    return {
        "qweight": shuffled(q.t()),
        "qzeros": shuffled(zero.t()),
        "scales": scale.t().half().contiguous(),
    }


def _packed(layout: Layout, q: Any, scale: Any, zero: Any, group_of: Any) -> dict[str, Any]:
    import torch

    made = {
        "weight_packed": words(q, layout.bits),
        "weight_scale": scale.half(),
        "weight_shape": torch.tensor(q.shape),
    }
    if not layout.symmetric:
        made["weight_zero_point"] = words(zero.t(), layout.bits).t().contiguous()
    if layout.ordered:
        made["weight_g_idx"] = group_of.int()
    return made


def _plain(layout: Layout, q: Any, scale: Any, zero: Any, _: Any) -> dict[str, Any]:
    import torch

    made = {"weight": (q - 128).to(torch.int8), "weight_scale": scale.half()}
    if not layout.symmetric:
        made["weight_zero_point"] = (zero - 128).to(torch.int8)
    return made


_LAYERS = {
    "gptq": _gptq, "gptq_v2": _gptq, "awq": _awq, "pack-quantized": _packed, "int-quantized": _plain,
}  # fmt: skip
