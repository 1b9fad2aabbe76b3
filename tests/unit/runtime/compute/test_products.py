"""Products with weights in blocks: the same numbers as torch's, for every shape, row and format."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llm_runtime.compute import native  # noqa: E402
from llm_runtime.compute.int4 import Int4Linear, Int4Weight  # noqa: E402
from llm_runtime.compute.int4 import quantize_weight as quantize_int4  # noqa: E402
from llm_runtime.compute.int8 import quantize_weight  # noqa: E402
from llm_runtime.compute.products import (  # noqa: E402
    BlockLinear,
    Product,
    Together,
    in_blocks,
    int4_linear,
    usable,
)
from llm_runtime.machine.remembered import cpu_flags  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(native.library() is None, reason="no compiled kernels: apt-get install g++"),
]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 40)
SHAPES = ((576, 192), (64, 32), (1, 1), (3, 5), (33, 17), (7, 130), (50, 63), (48, 66))
"""(outputs, inputs): whole blocks and groups, and every kind of rest."""
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


def linear(outputs: int, inputs: int, *, bias: bool = True) -> Any:
    torch.manual_seed(outputs * inputs)
    return torch.nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def int8(layer: Any) -> BlockLinear:
    return BlockLinear(layer, *quantize_weight(layer.weight.detach()))


def int4(layer: Any) -> BlockLinear:
    return BlockLinear(layer, quantize_int4(layer.weight.detach()))


INTEGERS = pytest.mark.parametrize("integers", [int8, int4], ids=["int8", "int4"])


def apart(actual: Any, expected: Any) -> float:
    return float((actual.float() - expected).norm() / expected.norm().clamp_min(1e-6))


def rounded(x: Any) -> Any:
    """What is left of a row after its quantisation in groups of 32."""
    parts = []
    for group in x.split(32, dim=-1):
        scale = group.abs().amax(dim=-1, keepdim=True) / 127
        parts.append(torch.where(scale > 0, (group / scale).round() * scale, 0.0))
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize(
    ("dtype", "together"), [(torch.float32, 1), (torch.bfloat16, 2), (torch.int8, 4)], ids=str
)
def test_blocks_hold_each_number_in_its_place_and_zeros_elsewhere(
    shape: tuple[int, int], dtype: Any, together: int
) -> None:
    weight = (torch.randn(*shape) * 40).to(dtype)
    found = in_blocks(weight)
    if dtype is torch.int8:
        found = (found.int() - 128).to(torch.int8)
    count, groups, lanes, neighbours = found.shape
    assert (lanes, neighbours) == (16, together)
    whole = found.transpose(1, 2).reshape(count * lanes, groups * together)
    assert torch.equal(whole[: shape[0], : shape[1]], weight)
    assert int(whole.count_nonzero()) == int(weight.count_nonzero())


def test_a_float32_that_bfloat16_holds_becomes_one_and_no_other_does() -> None:
    weight = torch.randn(33, 50).bfloat16()
    assert torch.equal(in_blocks(weight.float(), narrow=True), in_blocks(weight))
    odd = weight.float()
    odd[-1, -1] += 2**-20
    assert in_blocks(odd, narrow=True) is None


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_int8_is_the_product_of_what_was_rounded(shape: tuple[int, int], bias: bool) -> None:
    layer = linear(*shape, bias=bias)
    weight, scale = quantize_weight(layer.weight)
    for rows in ROWS:
        x = torch.randn(rows, shape[1])
        expected = torch.nn.functional.linear(rounded(x), weight * scale[:, None], layer.bias)
        assert apart(int8(layer)(x), expected) < 1e-5, rows


def exact(layer: Any, weight: Int4Weight, x: Any) -> Any:
    """The product of what was rounded, in float64."""
    bias = None if layer.bias is None else layer.bias.double()
    return torch.nn.functional.linear(rounded(x).double(), weight.dequantized().double(), bias)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_int4_is_the_product_of_what_was_rounded(shape: tuple[int, int], bias: bool) -> None:
    layer = linear(*shape, bias=bias)
    weight = quantize_int4(layer.weight)
    ours = BlockLinear(layer, weight)
    for rows in ROWS:
        x = torch.randn(rows, shape[1])
        assert apart(ours(x).double(), exact(layer, weight, x)) < 1e-5, rows


@pytest.mark.parametrize("size", [32, 64, 128, 1024], ids=str)
@pytest.mark.parametrize("most_zero", [0, 8, 16, 255])
def test_int4_takes_the_groups_scales_and_zero_points_of_checkpoints(
    size: int, most_zero: int
) -> None:
    torch.manual_seed(size)
    groups = 1024 // size
    q = torch.randint(0, 16, (70, 1024), dtype=torch.uint8)
    scale = torch.randn(70, groups) * torch.logspace(-9, 9, 70).unsqueeze(1)
    scale = scale.bfloat16().float()
    zero = torch.randint(0, most_zero + 1, (70, groups), dtype=torch.uint8)
    layer = torch.nn.Linear(1024, 70, bias=False)
    weight = Int4Weight.of(q, scale, zero)
    wide = scale.repeat_interleave(size, dim=1), zero.repeat_interleave(size, dim=1)
    torch.testing.assert_close(weight.dequantized(), (q.float() - wide[1]) * wide[0])
    for rows in (1, 17, 40):
        x = torch.randn(rows, 1024)
        out = int4_linear(layer, q, scale, zero)(x).double()
        terms = rounded(x).double().abs() @ weight.dequantized().double().abs().T
        assert ((out - exact(layer, weight, x)).abs() <= 2e-4 * terms).all()


@INTEGERS
def test_rows_of_a_weight_are_what_is_multiplied(integers: Any) -> None:
    layer = linear(50, 70, bias=False)
    ours = integers(layer)
    ids = torch.tensor([[0, 15, 16], [31, 32, 49]])
    rows = ours.rows(ids)
    assert (tuple(rows.shape), rows.dtype) == ((2, 3, 70), torch.float32)
    x = torch.randn(4, 70)
    assert apart(torch.einsum("abk,rk->rab", rows, rounded(x)), ours(x)[:, ids]) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_floating_point_is_the_same_product(
    shape: tuple[int, int], bias: bool, stored: Any
) -> None:
    layer = linear(*shape, bias=bias)
    layer.weight.data = layer.weight.to(stored).float()
    ours = BlockLinear(layer, layer.weight.to(stored))
    for rows in ROWS:
        x = torch.randn(rows, shape[1])
        assert apart(ours(x), layer(x)) < 1e-5, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_answer_has_the_number_format_of_the_input(dtype: Any) -> None:
    layer = linear(48, 66)
    x = torch.randn(2, 3, 66).to(dtype)
    for ours in (int8(layer), int4(layer), BlockLinear(layer, layer.weight.bfloat16())):
        out = ours(x)
        assert (out.dtype, tuple(out.shape)) == (dtype, (2, 3, 48))
        assert apart(out, layer(x.float())) < (0.1 if ours.kind == "int4" else 0.02)


@pytest.mark.parametrize("neighbour", [1e-4, 1.0, 1e4, float("inf"), float("nan")])
def test_a_row_does_not_depend_on_its_neighbours(neighbour: float) -> None:
    layer = linear(96, 130)
    x = torch.randn(1, 130)
    for ours in (int8(layer), int4(layer), BlockLinear(layer, layer.weight)):
        alone = ours(x)
        for rows in ROWS[1:]:
            batch = torch.full((rows, 130), neighbour)
            batch[rows // 2] = x
            torch.testing.assert_close(ours(batch)[rows // 2 :][:1], alone, rtol=1e-6, atol=1e-6)


@INTEGERS
def test_a_row_of_integers_is_the_same_to_the_last_bit_in_every_batch(integers: Any) -> None:
    ours = integers(linear(96, 130))
    x = torch.randn(40, 130)
    whole = ours(x)
    for rows in ROWS:
        assert torch.equal(ours(x[:rows]), whole[:rows])


@INTEGERS
@pytest.mark.parametrize("fault", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_shows_in_its_row_and_nowhere_else(
    integers: Any, fault: float
) -> None:
    x = torch.randn(3, 130)
    x[1, 129] = fault
    out = integers(linear(33, 130))(x)
    assert not out[1].isfinite().any()
    assert out[[0, 2]].isfinite().all()


@INTEGERS
def test_zeros_denormal_numbers_and_no_rows_are_answered(integers: Any) -> None:
    layer = linear(33, 130)
    ours = integers(layer)
    assert torch.equal(ours(torch.zeros(2, 130)), layer.bias.expand(2, 33))
    tiny = torch.full((1, 130), 1e-40)
    torch.testing.assert_close(ours(tiny), layer(tiny))
    for empty in (ours, BlockLinear(layer, layer.weight)):
        assert tuple(empty(torch.zeros(0, 130)).shape) == (0, 33)
        assert tuple(empty(torch.zeros(2, 0, 130)).shape) == (2, 0, 33)


def test_one_large_activation_costs_precision_in_its_group_only() -> None:
    layer = linear(96, 1024, bias=False)
    x = torch.randn(1, 1024)
    weight, scale = quantize_weight(layer.weight)
    x[0, 5] = 1000.0
    without = x.clone()
    without[0, :64] = 0.0
    others = int8(layer)(x) - (rounded(x[:, :64]) @ (weight[:, :64] * scale[:, None]).T)
    assert apart(others, layer(without)) < 0.02


def test_an_input_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="130 inputs, not 129"):
        int8(linear(33, 130))(torch.zeros(1, 129))


def test_a_view_with_strides_is_read_as_it_is_meant() -> None:
    ours = int8(linear(33, 64))
    x = torch.randn(64, 5)
    assert torch.equal(ours(x.T), ours(x.T.contiguous()))


def test_layers_that_read_the_same_input_are_multiplied_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [int8(linear(outputs, 66)) for outputs in (96, 33, 5)]
    calls: list[str] = []
    called = native.call
    monkeypatch.setattr(native, "call", lambda *given: (calls.append(given[0]), called(*given)))
    for rows in (1, 40):
        x = torch.randn(1, rows, 66)
        expected = [layer(x) for layer in layers]
        calls.clear()
        for ours, theirs in zip(Together(layers)(x), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert len(calls) == 1


@pytest.mark.parametrize("other", ["plain", "other inputs", "other numbers", "other integers"])
def test_layers_that_differ_are_called_one_by_one(other: str) -> None:
    layer = linear(33, 66)
    others = {
        "plain": layer,
        "other inputs": int8(linear(33, 64)),
        "other numbers": BlockLinear(layer, layer.weight),
        "other integers": int4(layer),
    }
    assert Together((int8(layer), others[other])).product is None


def test_a_layer_that_is_adapted_or_watched_is_called_itself() -> None:
    layers = [int8(linear(outputs, 66)) for outputs in (96, 33)]
    together = Together(layers)
    x = torch.randn(2, 66)
    seen: list[Any] = []
    hook = layers[1].register_forward_hook(lambda *_: seen.append(1))
    together(x)
    hook.remove()
    layers[0].forward = lambda given: torch.zeros(1)
    assert torch.equal(together(x)[0], torch.zeros(1))
    del layers[0].forward
    assert seen == [1]
    assert torch.equal(together(x)[0], layers[0](x))


@pytest.mark.parametrize("level", [*native.LEVELS, "x86-64-v2"])
def test_every_instruction_set_computes_the_same(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.LEVELS.get(level, frozenset()) <= cpu_flags():
        pytest.skip(f"this processor has not all of {level}")
    layers = [linear(*shape) for shape in SHAPES]
    xs = [torch.randn(9, shape[1]) for shape in SHAPES]
    expected = [int8(layer)(x) for layer, x in zip(layers, xs, strict=True)]
    narrow = [quantize_int4(layer.weight) for layer in layers]
    target = tmp_path / "kernels.so"
    try:
        native.build(target, level)
    except subprocess.TimeoutExpired:
        pytest.skip("the machine is too busy to compile")
    with monkeypatch.context() as patched:
        patched.setattr(native, "_built", lambda: target)
        clear()
        try:
            assert usable("int8")
            assert usable("int4")
            for layer, x, same, weight in zip(layers, xs, expected, narrow, strict=True):
                torch.testing.assert_close(int8(layer)(x), same, rtol=1e-5, atol=1e-6)
                for rows in (x, x.repeat(2, 1)):
                    ours = BlockLinear(layer, weight)(rows).double()
                    assert apart(ours, exact(layer, weight, rows)) < 1e-5
                for weight in (layer.weight, layer.weight.bfloat16()):
                    ours = BlockLinear(layer, weight)
                    theirs = torch.nn.functional.linear(x, weight.float(), layer.bias)
                    assert apart(ours(x), theirs) < 1e-5
        finally:
            clear()


def clear() -> None:
    """Forget which library is loaded: the next call looks anew."""
    for cached in (native.library, native.limit, native._function, usable):
        cached.cache_clear()


def test_on_a_gpu_weights_of_4_bits_are_a_layer_of_torch() -> None:
    q = torch.zeros(33, 64, dtype=torch.uint8)
    made = int4_linear(linear(33, 64), q, torch.ones(33, 2), device="cuda")
    assert type(made) is Int4Linear


def test_a_product_keeps_the_weights_that_it_points_to() -> None:
    layer = linear(33, 66)
    product = Product((int8(layer),))  # The layer itself is gone at once.
    x = torch.randn(2, 66)
    assert torch.equal(product(x)[0], int8(layer)(x))
