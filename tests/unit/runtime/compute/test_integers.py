"""Weights as 8-bit and 4-bit integers: what they cost in precision, and their layers in torch."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from llm_runtime.compute import int4, int8, native, products  # noqa: E402
from llm_runtime.compute.int4 import Int4Linear, Int4Weight  # noqa: E402
from llm_runtime.compute.int8 import Int8Linear  # noqa: E402
from llm_runtime.compute.products import BlockLinear  # noqa: E402


def linear(outputs: int = 96, inputs: int = 64, *, bias: bool = True) -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def apart(actual: Any, expected: Any) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def test_a_weight_of_8_bits_is_off_by_no_more_than_half_a_step_of_its_row() -> None:
    weight = torch.randn(7, 33) * torch.logspace(-3, 3, 7).unsqueeze(1)
    weight[3] = 0.0
    quantised, scale = int8.quantize_weight(weight)
    assert quantised.dtype is torch.int8
    assert ((quantised * scale.unsqueeze(1) - weight).abs() <= scale.unsqueeze(1) * 0.501).all()


def test_weights_are_quantised_alike_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(100, 70)
    whole = int8.quantize_weight(weight), int4.quantize_weight(weight).dequantized()
    monkeypatch.setattr(int8, "CHUNK", 700)
    monkeypatch.setattr(int4, "CHUNK", 700)
    assert all(
        torch.equal(a, b) for a, b in zip(int8.quantize_weight(weight), whole[0], strict=True)
    )
    assert torch.equal(int4.quantize_weight(weight).dequantized(), whole[1])


@pytest.mark.parametrize("inputs", [1, 31, 32, 33, 576])
@pytest.mark.parametrize("size", [1e-20, 1e-6, 1.0, 1e6])
def test_a_weight_of_4_bits_is_near_whatever_its_magnitude(inputs: int, size: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, inputs) * size
    weight[3] = 0.0
    narrow = int4.quantize_weight(weight)
    assert (narrow.q.shape, narrow.q.dtype) == (weight.shape, torch.uint8)
    assert int(narrow.q.max()) <= 15
    assert int(narrow.zero.max()) <= 15
    assert not narrow.dequantized()[3].any()
    assert apart(narrow.dequantized(), weight.double()) < 0.1


COMPILED = pytest.mark.skipif(
    native.library() is None, reason="no compiled kernels: apt-get install g++"
)


@COMPILED
def test_a_group_of_4_bits_is_nearer_than_by_its_largest_number() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 576)
    groups = weight.view(64, -1, 32)
    scale = groups.abs().amax(dim=2, keepdim=True) / 7
    plain = ((groups / scale).round() * scale).view(64, 576)
    ours = int4.quantize_weight(weight).dequantized()
    assert apart(ours, weight.double()) < 0.8 * apart(plain, weight.double())


@COMPILED
def test_an_input_that_counts_more_is_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 100)
    counts = torch.ones(100)
    counts[40:44] = 1000.0
    plain = (int4.quantize_weight(weight).dequantized() - weight)[:, 40:44].norm()
    ours = (int4.quantize_weight(weight, counts).dequantized() - weight)[:, 40:44].norm()
    assert ours < 0.7 * plain


def test_without_kernels_a_group_holds_its_least_and_its_largest_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    weight = torch.randn(64, 100)
    error = int4.quantize_weight(weight).dequantized() - weight
    range_of = torch.nn.functional.pad(weight, (0, 28)).view(64, 4, 32)
    step = (range_of.amax(dim=2) - range_of.amin(dim=2)) / 15
    error = torch.nn.functional.pad(error, (0, 28)).view(64, 4, 32).abs().amax(dim=2)
    assert (error <= 1.01 * step).all()


def test_a_group_of_one_sign_uses_all_of_its_numbers() -> None:
    weight = torch.linspace(0.0, 1.5, 32).unsqueeze(0)
    for rows in (weight, -weight):
        narrow = int4.quantize_weight(rows)
        assert (int(narrow.q.min()), int(narrow.q.max())) == (0, 15)
        assert ((narrow.dequantized() - rows).abs() < 0.06).all()


def kinds() -> list[Any]:
    """Ways to make a layer of integers, and its allowed error: with and without compiled kernels."""
    made: list[Any] = [
        (lambda layer: Int8Linear(layer, *int8.quantize_weight(layer.weight)), 0.02),
        (lambda layer: Int4Linear(layer, int4.quantize_weight(layer.weight)), 0.1),
    ]
    if native.library() is not None:
        made.append((lambda layer: BlockLinear(layer, *int8.quantize_weight(layer.weight)), 0.02))
        made.append((lambda layer: BlockLinear(layer, int4.quantize_weight(layer.weight)), 0.1))
    return made


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64), (300, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_answers_as_the_layer_it_replaces(shape: tuple[int, ...], bias: bool) -> None:
    layer = linear(bias=bias)
    x = torch.randn(shape)
    expected = layer(x)
    for made, allowed in kinds():
        out = made(layer)(x)
        assert (out.shape, out.dtype) == (expected.shape, torch.float32)
        assert apart(out, expected.double()) < allowed


@pytest.mark.parametrize("inputs", [1, 5, 33, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_in_torch_multiplies_what_was_rounded(inputs: int, dtype: Any) -> None:
    layer = linear(48, inputs)
    weight = int4.quantize_weight(layer.weight)
    x = torch.randn(3, inputs).to(dtype)
    out = Int4Linear(layer.to(dtype), weight)(x)
    expected = x.double() @ weight.dequantized().double().T + layer.bias.double()
    assert out.dtype is dtype
    assert apart(out, expected) < (1e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("size", [32, 64, 128, 256], ids=str)
def test_groups_of_a_checkpoint_are_brought_to_32(size: int) -> None:
    q = torch.randint(0, 16, (5, 256), dtype=torch.uint8)
    scale = torch.rand(5, 256 // size).half().float()
    zero = torch.randint(0, 17, (5, 256 // size), dtype=torch.uint8)
    made = Int4Weight.of(q, scale, zero)
    groups = q.view(5, -1, size).float()
    expected = ((groups - zero.unsqueeze(2)) * scale.unsqueeze(2)).view(5, 256)
    assert torch.equal(made.dequantized(), expected)
    assert torch.equal(Int4Weight.of(q, scale, zero.float()).dequantized(), expected)


def test_without_zero_points_8_is_zero() -> None:
    q = torch.full((2, 40), 8, dtype=torch.uint8)
    assert not Int4Weight.of(q, torch.ones(2, 2)).dequantized().any()
    assert torch.equal(Int4Weight.of(q + 1, torch.ones(2, 1)).dequantized(), torch.ones(2, 40))


Q = torch.zeros(2, 96, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("q", "scale", "zero", "fault"),
    [
        (Q, torch.tensor([[1.0], [float("nan")]]), None, "scales are not finite"),
        (Q, torch.tensor([[1.0], [float("inf")]]), None, "scales are not finite"),
        (Q, torch.ones(3, 3), None, r"scales are \[3, 3\] for 2 outputs"),
        (Q, torch.ones(2, 2), None, "96 inputs in 2 groups: no multiple of 32"),
        (Q, torch.ones(2, 4), None, "96 inputs in 4 groups"),
        (Q + 16, torch.ones(2, 3), None, "more than 4 bits"),
        (Q, torch.ones(2, 3), torch.full((2, 3), 0.5), "no whole numbers"),
        (Q, torch.ones(2, 3), torch.full((2, 3), -1.0), "no whole numbers"),
        (Q, torch.ones(2, 3), torch.zeros(2, 1), r"zero points are \[2, 1\], scales \[2, 3\]"),
    ],
)
def test_what_has_no_place_among_4_bits_is_refused(
    q: Any, scale: Any, zero: Any, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        products.int4_linear(linear(2, 96), q, scale, zero)
