"""LoRA: many adapters beside one base model, in one batch.

A linear layer that an adapter targets returns `base(x) + B·A·x` (Hu et al. 2021), with the A and B
of each row's adapter. The A and B of adapters that run together lie side by side in a `_Stack`. `x`
is multiplied by all A at once. A mask clears the columns that do not belong to a row's adapter. The
result times all B at once is added to the base's output. So a layer costs two small products,
however many adapters a step has. Linears that read the same tensor (query, key, value; gate, up)
share the first product.

On a CPU, short runs of rows go through a compiled kernel instead, which multiplies each row with
its own adapter only (as Punica's SGMV does on a GPU, Chen et al. 2023). In a decode step, masked
columns and seven times two small products a layer would cost more than the sums themselves.

Before each forward, `AdapterSet.select` says which rows belong to which adapter. No module is
replaced: a targeted one gets its own `forward`, which is removed again when no adapter targets it.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from llm_runtime.compute import native
from llm_runtime.compute.linears import PACKED_FOR
from llm_runtime.compute.native import KERNELS

SHELF_RANK = 256
"""Largest sum of ranks of adapters that are computed together.
It is bounded because masked columns cost time, too."""

OWN_ROWS = 64
"""Number of rows from which a run (a chunk of a prompt)
is computed with its own adapter only, not with a stack."""

PROBE_TOKENS = 17
MKL_WIDTH = 16
"""Width up to which MKL multiplies 32 rows faster than oneDNN sets up its call.
Beyond, oneDNN takes half the time."""

BASE = ""
"""The name of the base model: no adapter."""

Spans = Iterable[tuple[str, int]]
"""(adapter's name or "", number of rows), in the order of a step's rows."""


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Features in and out of a linear layer."""

    inputs: int
    outputs: int


@dataclass(frozen=True)
class LoraWeights:
    """One module's part of an adapter: `a` [rank, inputs],
    `b` [outputs, rank] with the scaling folded in."""

    a: Any
    b: Any

    @cached_property
    def b_rows(self) -> Any:
        """`b` as [rank, outputs], the layout that the CPU kernel reads."""
        return self.b.t().contiguous()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter. `weights` by module name, as in `model.named_modules()`;
    `rank` is the highest of them."""

    rank: int
    weights: Mapping[str, LoraWeights]


Shapes = Mapping[str, LinearShape]
Reader = Callable[[Path, Shapes], Adapter]
"""Reads an adapter's folder and checks it against the base's linears.
Raises errors.Fatal subclasses."""


class AdapterSet:
    """The adapters loaded beside `model`.
    For one thread, between steps; only `read` may run on another."""

    def __init__(self, model: Any, reader: Reader, *, tiled: bool = True) -> None:
        """Run `model` once to learn which linears read the same tensor.
        Call it before its attention is replaced.

        Without `tiled`, every step has a single adapter, so a linear may also see rows that are not
        the step's (DeepSeek's projections read the whole cache).
        """
        self._linears = _find_linears(model)
        if any(
            isinstance(linear.module.forward, _AdaptedForward) for linear in self._linears.values()
        ):
            raise ValueError("the model already has a set of adapters")
        self._reader = reader
        self._device = model.device
        self._dtype = model.dtype
        self._adapters: dict[str, Adapter] = {}
        self._tiled = (
            tiled
            and self._dtype in KERNELS
            and self._device.type == "cpu"
            and native.library() is not None
        )
        self._pointers = _Pointers({})
        self._shelves: list[list[str]] = []
        self._stacks: dict[tuple[str, ...], _Stack] = {}
        self._step = _Step()
        self._selected: tuple[tuple[str, int], ...] | None = None
        self.shapes: Shapes = {name: linear.shape for name, linear in self._linears.items()}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._adapters)

    def read(self, folder: Path) -> Adapter:
        """Read and check an adapter without installing it. Raises errors.Fatal subclasses."""
        return self._reader(folder, self.shapes)

    def load(self, name: str, folder: Path) -> None:
        """`read`, then `install`."""
        self.install(name, self.read(folder))

    def install(self, name: str, adapter: Adapter) -> None:
        """Install `adapter` as `name`, replacing one of that name.
        Rows of other adapters are unaffected."""
        if name == BASE:
            raise ValueError("an adapter needs a name")
        place = {"device": self._device, "dtype": self._dtype}
        weights = {
            module: LoraWeights(w.a.to(**place).contiguous(), w.b.to(**place))
            for module, w in adapter.weights.items()
        }
        self.drop(name)
        self._adapters[name] = Adapter(adapter.rank, weights)
        self._pointers = _Pointers(self._adapters)
        self._shelve(name)
        for module in weights:
            self._linears[module].adapt(self._step)

    def drop(self, name: str) -> None:
        """Remove an adapter. Does nothing if it is not installed."""
        if self._adapters.pop(name, None) is None:
            return
        self._pointers = _Pointers(self._adapters)
        self._shelves = [
            rest for shelf in self._shelves if (rest := [other for other in shelf if other != name])
        ]
        self._forget_stacks(name)
        targeted = {module for adapter in self._adapters.values() for module in adapter.weights}
        for module, linear in self._linears.items():
            if module not in targeted:
                linear.restore()

    def select(self, spans: Spans) -> None:
        """Assign the rows of the next forward to adapters.
        Raises KeyError for an adapter that is not loaded."""
        wanted = tuple(spans)
        if wanted != self._selected:
            self._selected = None
            self._step.blocks = self._blocks(_runs(wanted))
            self._selected = wanted
        self._step.forget_products()

    @property
    def selected(self) -> bool:
        """Whether a row of the next forward belongs to an adapter."""
        return bool(self._step.blocks)

    def _shelve(self, name: str) -> None:
        rank = self._adapters[name].rank
        for shelf in self._shelves:
            if sum(self._adapters[other].rank for other in shelf) + rank <= SHELF_RANK:
                shelf.append(name)
                break
        else:
            self._shelves.append([name])
        self._forget_stacks(name)

    def _forget_stacks(self, changed: str) -> None:
        current = {tuple(shelf) for shelf in self._shelves} | {(name,) for name in self._adapters}
        self._stacks = {
            key: stack
            for key, stack in self._stacks.items()
            if key in current and changed not in key
        }
        self._selected = None
        # The blocks hold stacks, and so would keep the weights of removed adapters alive.
        self._step.blocks = ()

    def _stack(self, names: tuple[str, ...]) -> "_Stack":
        if names not in self._stacks:
            self._stacks[names] = _Stack(
                {name: self._adapters[name] for name in names}, self._linears
            )
        return self._stacks[names]

    def _blocks(self, runs: "list[_Run]") -> "tuple[_Block | _TiledBlock, ...]":
        """The blocks of a step: one for each long run,
        and one for each group of neighbouring short runs."""
        height = runs[-1].end if runs else 0
        parts: list[list[_Run]] = []
        for long, group in groupby(runs, lambda run: run.rows >= OWN_ROWS):
            neighbours = list(group)
            parts += ([run] for run in neighbours) if long else (neighbours,)
        return tuple(block for part in parts for block in self._blocks_of(part, height))

    def _blocks_of(self, runs: "list[_Run]", height: int) -> "Sequence[_Block | _TiledBlock]":
        names = {run.name for run in runs} - {BASE}
        if unknown := names - self._adapters.keys():
            raise KeyError(f"no adapter {', '.join(sorted(unknown))} is loaded")
        if not names:
            return []
        if self._tiled and runs[0].rows < OWN_ROWS:
            return [_TiledBlock(runs, height, self._pointers, self._dtype)]
        together = [[name for name in shelf if name in names] for shelf in self._shelves]
        shelves = [
            (shelf, used) for shelf, used in zip(self._shelves, together, strict=True) if used
        ]
        blocks = []
        for shelf, used in shelves:
            stack = self._stack(tuple(shelf if len(used) > 1 else used))
            mine = runs if len(shelves) == 1 else [run for run in runs if run.name in used]
            blocks.append(_block(stack, mine, height, self._device, self._dtype))
        return blocks


@dataclass(frozen=True, slots=True)
class _Run:
    """Contiguous rows [begin, end) of one adapter, or of the base."""

    name: str
    begin: int
    end: int

    @property
    def rows(self) -> int:
        return self.end - self.begin


def _runs(spans: Spans) -> list[_Run]:
    runs = []
    begin = 0
    for name, group in groupby(spans, lambda span: span[0]):
        end = begin + sum(count for _, count in group)
        runs.append(_Run(name, begin, end))
        begin = end
    return runs


class _Step:
    """State of the current step, shared by all targeted linears."""

    def __init__(self) -> None:
        self.blocks: tuple[_Block | _TiledBlock, ...] = ()
        self.forget_products()

    def forget_products(self) -> None:
        self._input: _Input | None = None
        self._source: Any = None
        self._products: list[Any] = []

    def products(self, read: "_Input", x: Any) -> list[Any]:
        """Each block's product with A for all linears that read `x`,
        cached until another tensor is read."""
        if self._source is not x or self._input is not read:
            rows = x.reshape(-1, x.shape[-1])
            self._input = read
            self._source = x
            self._products = [block.first(read, rows) for block in self.blocks]
        return self._products


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows that are computed with one stack.
    `masks`: by number of linears that share a product; {} if not needed."""

    stack: "_Stack"
    rows: Any
    """None for all rows of the step, else a slice or a tensor of indices."""
    masks: Mapping[int, Any]

    def first(self, read: "_Input", x: Any) -> Any:
        """`x` [all rows, inputs] times A: [rows of this block, linears · ranks];
        None if no adapter targets `read`."""
        first = self.stack.first.get(read)
        if first is None:
            return None
        return first.matrix.times(
            x if self.rows is None else x[self.rows], self.masks.get(first.linears)
        )

    def second(self, module: str, product: Any, y: Any) -> Any:
        """`y` [all rows, outputs] with the products with B added to this block's rows;
        `y` may be changed in place."""
        second = self.stack.second.get(module)
        if second is None:
            return y
        mine = product.narrow(1, second.column, self.stack.rank)
        if self.rows is None:
            return second.matrix.added(mine, y)
        part = y[self.rows]
        added = second.matrix.added(mine, part)
        if added is not part or not isinstance(
            self.rows, slice
        ):  # A slice is a view of `y`, changed in place.
            y[self.rows] = added
        return y


class _Pointers:
    """Addresses of the adapters' weights, for the compiled kernel.
    Collected when a module first runs."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self.index = {name: index for index, name in enumerate(adapters)}
        self._adapters = list(adapters.values())
        self._modules: dict[str, tuple[Any, Any, Any] | None] = {}

    def of(self, module: str) -> tuple[Any, Any, Any] | None:
        """Addresses of every adapter's A and B, 0 where it has none, and ranks;
        None if no adapter has any."""
        if module not in self._modules:
            self._modules[module] = self._find(module)
        return self._modules[module]

    def _find(self, module: str) -> tuple[Any, Any, Any] | None:
        parts = [adapter.weights.get(module) for adapter in self._adapters]
        if not any(parts):
            return None
        return (
            torch.tensor([part.a.data_ptr() if part else 0 for part in parts]),
            torch.tensor([part.b_rows.data_ptr() if part else 0 for part in parts]),
            torch.tensor([part.a.shape[0] if part else 0 for part in parts], dtype=torch.int32),
        )


class _TiledBlock:
    """Short runs on a CPU, for the compiled kernel:
    each row is multiplied by its own adapter's weights only.

    Rows of one adapter are grouped into tiles of at most `lora_rows`,
    so that its weights are read once for a tile.
    """

    def __init__(self, runs: list[_Run], height: int, pointers: _Pointers, dtype: Any) -> None:
        self._pointers = pointers
        self._format = KERNELS[dtype]
        order: list[int] = []
        tiles: list[int] = []
        most = native.limit("lora_rows")
        for name in sorted({run.name for run in runs} - {BASE}):
            rows = [row for run in runs if run.name == name for row in range(run.begin, run.end)]
            for first in range(0, len(rows), most):
                tile = rows[first : first + most]
                tiles += (len(order), len(tile), pointers.index[name])
                order += tile
        self._height = height
        self._order, self._tiles = (
            torch.tensor(part, dtype=torch.int32) for part in (order, tiles)
        )
        self._count = len(tiles) // 3

    def first(self, read: "_Input", x: Any) -> Any:
        """The input itself, because the kernel computes both products in `second`."""
        if x.shape[0] != self._height:  # The kernel does not check the number of rows.
            raise RuntimeError(
                f"{', '.join(read.modules)}: {x.shape[0]} rows in a step of {self._height}"
            )
        return x.contiguous()

    def second(self, module: str, x: Any, y: Any) -> Any:
        """`y` [all rows, outputs] with the adapters' part added, in place."""
        weights = self._pointers.of(module)
        if weights is None:
            return y
        y = y.contiguous()
        a, b, ranks = weights
        native.call(
            "llm_lora", self._format, x.data_ptr(), y.data_ptr(), x.shape[1], y.shape[1], self._order.data_ptr(),
            self._tiles.data_ptr(), self._count, a.data_ptr(), b.data_ptr(), ranks.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return y


def _block(stack: "_Stack", runs: list[_Run], height: int, device: Any, dtype: Any) -> _Block:
    begin = runs[0].begin
    end = runs[-1].end
    names = {run.name for run in runs}
    rows: Any = slice(begin, end)
    if sum(run.rows for run in runs) < end - begin:
        rows = torch.tensor(
            [row for run in runs for row in range(run.begin, run.end)], device=device
        )
    elif end - begin == height:
        rows = None
    masks = (
        {}
        if len(names) == 1
        else stack.masks([run.name for run in runs for _ in range(run.rows)], device, dtype)
    )
    return _Block(stack, rows, masks)


@dataclass(frozen=True, slots=True)
class _First:
    matrix: "_Matrix"
    linears: int


@dataclass(frozen=True, slots=True)
class _Second:
    matrix: "_Matrix"
    column: int


class _Stack:
    """The A and B of some adapters side by side.
    An adapter has the same columns in every module, zero if unused."""

    def __init__(self, adapters: Mapping[str, Adapter], linears: "Mapping[str, _Linear]") -> None:
        self.rank = sum(adapter.rank for adapter in adapters.values())
        self._owners = [
            index for index, adapter in enumerate(adapters.values()) for _ in range(adapter.rank)
        ]
        self._index = {name: index for index, name in enumerate(adapters)}
        self.first: dict[_Input, _First] = {}
        self.second: dict[str, _Second] = {}
        targeted = {module for adapter in adapters.values() for module in adapter.weights}
        for read in dict.fromkeys(linears[module].read for module in linears if module in targeted):
            self._add(
                read,
                [module for module in read.modules if module in targeted],
                list(adapters.values()),
            )

    def masks(self, names: list[str], device: Any, dtype: Any) -> dict[int, Any]:
        """Masks [rows, linears · ranks] by number of linears:
        1 where a column belongs to the row's adapter, else 0."""
        wanted = torch.tensor([self._index.get(name, -1) for name in names], device=device)
        mask = (wanted.unsqueeze(1) == torch.tensor(self._owners, device=device)).to(dtype)
        return {
            linears: mask.repeat(1, linears)
            for linears in {first.linears for first in self.first.values()}
        }

    def _add(self, read: "_Input", modules: list[str], adapters: list[Adapter]) -> None:
        parts = [
            _side_by_side([adapter.weights.get(module) for adapter in adapters], adapters)
            for module in modules
        ]
        self.first[read] = _First(_matrix(torch.cat([part.a for part in parts])), len(modules))
        for index, (module, part) in enumerate(zip(modules, parts, strict=True)):
            self.second[module] = _Second(_matrix(part.b), index * self.rank)


def _side_by_side(weights: list[LoraWeights | None], adapters: list[Adapter]) -> LoraWeights:
    """One module's weights of all `adapters`, of which at least one has some:
    [ranks, inputs], [outputs, ranks]."""
    like = next(part for part in weights if part is not None)
    none = LoraWeights(like.a[:0], like.b[:, :0])
    parts = [
        _filled(part or none, adapter.rank) for part, adapter in zip(weights, adapters, strict=True)
    ]
    return (
        parts[0]
        if len(parts) == 1
        else LoraWeights(torch.cat([p.a for p in parts]), torch.cat([p.b for p in parts], 1))
    )


def _filled(part: LoraWeights, rank: int) -> LoraWeights:
    """Pad with zeros to `rank`: by a rank pattern,
    a module may have less than its adapter's highest rank."""
    lacking = rank - part.a.shape[0]
    return (
        LoraWeights(F.pad(part.a, (0, 0, 0, lacking)), F.pad(part.b, (0, lacking)))
        if lacking
        else part
    )


class _Matrix:
    """A weight [outputs, inputs] for products with rows."""

    def __init__(self, weight: Any) -> None:
        self._transposed = weight.t()

    def times(self, x: Any, mask: Any) -> Any:
        """`(x · weightᵀ) ∘ mask`, without the mask when that is None. `x` [rows, inputs]."""
        product = torch.mm(x, self._transposed)
        return product if mask is None else product.mul_(mask)

    def added(self, x: Any, y: Any) -> Any:
        """`y + x · weightᵀ`, in `y` itself or in a new tensor.
        `x` [rows, inputs], `y` [rows, outputs]."""
        return y.addmm_(x, self._transposed)


class _OneDnnMatrix(_Matrix):
    """As `_Matrix`, by oneDNN: the weight is in its layout,
    and mask or sum are applied in the pass over the output."""

    def __init__(self, weight: Any) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)

    def times(self, x: Any, mask: Any) -> Any:
        if mask is None:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, mask, self._weight, None, "mul")

    def added(self, x: Any, y: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise.binary(x, y, self._weight, None, "add")


def _matrix(weight: Any) -> _Matrix:
    return _OneDnnMatrix(weight) if _prefers_onednn(weight) else _Matrix(weight)


def _prefers_onednn(weight: Any) -> bool:
    """Whether it is float32 on a CPU, where torch's `mm` uses MKL.
    For bfloat16, `mm` already uses oneDNN."""
    wide = min(weight.shape) > MKL_WIDTH
    return wide and weight.device.type == "cpu" and weight.dtype == torch.float32 and _has_onednn()


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Input:
    """Names of linears that read the very same tensor, one after another."""

    modules: list[str]


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer of the base that adapters may target."""

    name: str
    module: Any
    shape: LinearShape
    read: _Input

    def adapt(self, step: _Step) -> None:
        if not isinstance(self.module.forward, _AdaptedForward):
            self.module.forward = _AdaptedForward(self.name, self.module.forward, self.read, step)

    def restore(self) -> None:
        adapted = self.module.forward
        if isinstance(adapted, _AdaptedForward):
            del self.module.forward
            # Deleting the attribute restores the class's method.
            # The instance may have had another forward before.
            if self.module.forward != adapted.base:
                self.module.forward = adapted.base


@dataclass(frozen=True, slots=True)
class _AdaptedForward:
    """The `forward` of a targeted module: the base's output,
    plus what the step's adapters add to their rows."""

    name: str
    base: Callable[[Any], Any]
    read: _Input
    step: _Step

    def __call__(self, x: Any) -> Any:
        y = self.base(x)
        blocks = self.step.blocks
        if not blocks:
            return y
        flat = y.reshape(-1, y.shape[-1])
        for block, product in zip(blocks, self.step.products(self.read, x), strict=True):
            flat = block.second(self.name, product, flat)
        return flat.view(y.shape)


def _find_linears(model: Any) -> dict[str, _Linear]:
    """All linears that see each token of a step once and in order, by name.

    Other layers can't be adapted, because their rows can't be assigned to adapters: an expert sees
    only some tokens, and the output layer only those that are sampled.
    """
    calls = _probe(model)
    linears: dict[str, _Linear] = {}
    previous: Any = None
    read = _Input([])
    for name, module, x in calls:
        if (
            sum(name == other for other, _, _ in calls) > 1
            or x.numel() // x.shape[-1] != PROBE_TOKENS
        ):
            continue
        if x is not previous:
            previous = x
            read = _Input([])
        read.modules.append(name)
        linears[name] = _Linear(name, module, _shape(module), read)
    return linears


def _probe(model: Any) -> list[tuple[str, Any, Any]]:
    """(name, module, input) of the model's linears, in the order of execution."""
    calls: list[tuple[str, Any, Any]] = []
    output = model.get_output_embeddings()
    named = {m: name for name, m in model.named_modules() if m is not output and _is_linear(m)}

    def note(module: Any, arguments: tuple[Any, ...], result: Any) -> None:
        if isinstance(
            result, torch.Tensor
        ):  # A router of experts looks like a linear, but returns more than a tensor.
            calls.append((named[module], module, arguments[0]))

    hooks = [module.register_forward_hook(note) for module in named]
    ids = (
        torch.arange(PROBE_TOKENS, device=model.device).unsqueeze(0)
        % model.get_input_embeddings().num_embeddings
    )
    try:
        with torch.inference_mode():
            # Keep one row of logits, as a step does,
            # so that layers after the selection show that they see fewer rows.
            chosen = (
                {"logits_to_keep": 1}
                if "logits_to_keep" in inspect.signature(model.forward).parameters
                else {}
            )
            model(input_ids=ids, use_cache=False, **chosen)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _is_linear(module: Any) -> bool:
    """Whether it is an nn.Linear, a module with the same attributes, or GPT-2's Conv1D."""
    return all(hasattr(module, name) for name in ("in_features", "out_features")) or (
        type(module).__name__ == "Conv1D" and hasattr(module, "nx")
    )


def _shape(module: Any) -> LinearShape:
    if hasattr(module, "in_features"):
        return LinearShape(module.in_features, module.out_features)
    return LinearShape(module.nx, module.nf)
