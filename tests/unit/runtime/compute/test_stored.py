"""Words of quantised checkpoints, as the documents of their tools have them, and the weights that they
stand for."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute.stored import StoredLinear  # noqa: E402
from llm_runtime.errors import ModelCorrupt  # noqa: E402
from llm_runtime.files.quantised import Format  # noqa: E402
from llm_runtime.files.stored_layers import StoredLayer  # noqa: E402

DTYPES = {torch.int32: "I32", torch.int64: "I64", torch.int8: "I8", torch.float16: "F16"}


def stored(number_format: Format, outputs: int, inputs: int, **tensors: Any) -> StoredLinear:
    """A layer with these tensors, as Transformers would leave it."""
    headers = {
        name: {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }
    linear = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    layer = StoredLinear(linear, StoredLayer("layer", number_format, headers))
    for name, tensor in tensors.items():
        assert getattr(layer, name).shape == tensor.shape
        setattr(layer, name, tensor.float() if tensor.is_floating_point() else tensor)
    layer.settle()
    return layer


def words(*rows: tuple[int, ...]) -> Any:
    """Rows of unsigned words as int32."""
    wide = torch.tensor(rows, dtype=torch.int64)
    return torch.where(wide >= 1 << 31, wide - (1 << 32), wide).int()


def halves(*shape: int) -> Any:
    return torch.ones(shape, dtype=torch.float16)


def test_gptq_counts_inputs_from_the_lowest_bits_up_and_zero_points_from_one() -> None:
    layer = stored(
        Format("gptq", 4, -1), 8, 8,
        qweight=words((0x76543210,) * 8), scales=halves(1, 8), qzeros=words((0x77777777,)),
    )  # fmt: skip
    weight = layer.unpacked()
    assert weight.integers.tolist() == [list(range(8))] * 8
    assert weight.zeros.tolist() == [[8]] * 8
    assert weight.dequantised()[0].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1]


def test_gptq_v2_stores_zero_points_as_they_are_meant() -> None:
    layer = stored(
        Format("gptq_v2", 4, -1), 8, 8,
        qweight=words((0,) * 8), scales=halves(1, 8), qzeros=words((0x88888888,)),
    )  # fmt: skip
    assert layer.unpacked().zeros.flatten().tolist() == [8] * 8


@pytest.mark.parametrize(
    ("bits", "meant", "ones"),
    [(4, (0, 3, 0, 15, 8, 0, 1, 0), 0x11111111), (8, (0, 255, 0, 128), 0x01010101)],
)
def test_a_zero_point_of_0_that_borrowed_from_the_next_comes_back(
    bits: int, meant: tuple[int, ...], ones: int
) -> None:
    whole = sum(zero << bits * place for place, zero in enumerate(meant))
    outputs = len(meant)
    layer = stored(
        Format("gptq", bits, -1), outputs, 8,
        qweight=words(*((0,) * outputs,) * (8 * bits // 32)), scales=halves(1, outputs),
        qzeros=words(((whole - ones) % (1 << 32),)),
    )  # fmt: skip
    assert layer.unpacked().zeros.flatten().tolist() == list(meant)


def test_gptq_of_8_bits_and_groups() -> None:
    layer = stored(
        Format("gptq", 8, 4), 4, 8,
        qweight=words((0x03020100,) * 4, (0xFFFEFDFC,) * 4), scales=halves(2, 4),
        qzeros=words((0x7F7F7F7F,), (0x00000000,)),
    )  # fmt: skip
    weight = layer.unpacked()
    assert weight.integers[0].tolist() == [0, 1, 2, 3, 252, 253, 254, 255]
    assert weight.zeros[0].tolist() == [128, 1]


def test_awq_shuffles_outputs() -> None:
    layer = stored(
        Format("awq", 4, -1), 8, 2,
        qweight=words((0x75316420,), (0x75316420,)), scales=halves(1, 8),
        qzeros=words((0x75316420,)),
    )  # fmt: skip
    weight = layer.unpacked()
    assert weight.integers.tolist() == [[output] * 2 for output in range(8)]
    assert weight.zeros.flatten().tolist() == list(range(8))


def test_compressed_tensors_pads_inputs_and_packs_zero_points_along_the_outputs() -> None:
    layer = stored(
        Format("pack-quantized", 4, 5), 3, 10,
        weight_packed=words((0x76543210, 0x98), (0, 0), (0xFFFFFFFF, 0xFF)),
        weight_scale=halves(3, 2), weight_shape=torch.tensor([3, 10]),
        weight_zero_point=words((0x321, 0xCBA)),
    )  # fmt: skip
    weight = layer.unpacked()
    assert weight.integers.tolist() == [list(range(10)), [0] * 10, [15] * 10]
    assert weight.zeros.tolist() == [[1, 10], [2, 11], [3, 12]]


def test_plain_int8_is_unsigned_with_the_middle_as_its_zero_point() -> None:
    layer = stored(
        Format("int-quantized", 8, -1, symmetric=True), 1, 4,
        weight=torch.tensor([[-128, -1, 0, 127]], dtype=torch.int8), weight_scale=halves(1, 1),
    )  # fmt: skip
    assert layer.unpacked().zeros.tolist() == [[128]]
    assert layer.unpacked().dequantised().tolist() == [[-128, -1, 0, 127]]


def ordered(*groups: int) -> StoredLinear:
    return stored(
        Format("gptq", 4, 4), 8, 8,
        qweight=words((0x76543210,) * 8), scales=torch.tensor([[1.0] * 8, [10.0] * 8]).half(),
        qzeros=words((0x77777777,), (0x77777777,)), g_idx=torch.tensor(groups, dtype=torch.int32),
    )  # fmt: skip


def test_inputs_of_a_group_are_brought_together_and_products_follow() -> None:
    layer = ordered(1, 0, 1, 0, 0, 1, 0, 1)
    assert layer.order.tolist() == [1, 3, 4, 6, 0, 2, 5, 7]
    assert layer.unpacked().dequantised()[0].tolist() == [-7, -5, -4, -2, -80, -60, -30, -10]
    assert layer(torch.eye(8))[:, 0].tolist() == [-80, -7, -60, -5, -4, -30, -2, -10]


def test_groups_that_lie_together_anyway_cost_nothing() -> None:
    assert ordered(0, 0, 0, 0, 1, 1, 1, 1).order is None
    assert ordered(1, 1, 1, 1, 0, 0, 0, 0).order is not None


@pytest.mark.parametrize("groups", [(0,) * 8, (0, 0, 0, 0, 1, 1, 1, 2), (-1,) * 8])
def test_groups_of_different_sizes_are_corrupt(groups: tuple[int, ...]) -> None:
    with pytest.raises(ModelCorrupt, match="does not put 4 inputs into each of 2 groups"):
        ordered(*groups)
