"""Weights are replaced in place: the memory of the old ones is given back while the new ones are
made. Whether it pays is measured once for a kind of machine."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute import linears, native  # noqa: E402
from llm_runtime.compute.products import BlockLinear  # noqa: E402

LAYERS = 48
SIZE = 768
WEIGHTS_MIB = LAYERS * SIZE * SIZE * 4 >> 20
PACKS = {
    way: f"linears._gains = lambda samples: {{s: {{{way!r}: 2.0}} for s in samples}}; "
    "linears.pack_linears(model)"
    for way in linears._WAYS
}
QUANTIZE = {
    kind: "from llm_runtime.compute.quantised import quantize; quantize(model, lambda:"
    f" model(torch.zeros(1, SIZE)), 'cpu', {kind!r})"
    for kind in ("int8", "int4")
}
# As Transformers reads a model: weights are made on threads,
# each with a heap that no other thread uses.
PROGRAM = """
import threading
import torch
from torch import nn
from llm_runtime.compute import linears
from llm_runtime.machine.memory import MIB
from llm_runtime.loading.peak import PeakMemory
LAYERS, SIZE, THREADS = {layers}, {size}, 4
torch.empty(4 * MIB)  # Freed at once: from now on the C library keeps blocks of up to 16 MiB in its heaps.
made, together = [], threading.Barrier(THREADS)
def read():
    together.wait()
    torch.empty(1)
    together.wait()
    made.extend(torch.randn(SIZE, SIZE) for _ in range(LAYERS // THREADS))
    together.wait()
threads = [threading.Thread(target=read) for _ in range(THREADS)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
model = nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False, device="meta") for _ in made))
for layer in model:
    layer.weight = nn.Parameter(made.pop(), requires_grad=False)
del layer
with PeakMemory() as peak:
    {change}
print((peak.peak_bytes - peak.before_bytes) // MIB)
"""


@pytest.mark.parametrize("change", [*PACKS.values(), *QUANTIZE.values()], ids=[*PACKS, *QUANTIZE])
def test_a_model_whose_layers_are_replaced_never_takes_its_weights_twice(change: str) -> None:
    program = PROGRAM.format(layers=LAYERS, size=SIZE, change=change)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.5 * WEIGHTS_MIB


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, ...]]:
    """The shapes that are measured, with a gain of 1.5 by oneDNN; the cache is an empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linears, "_ways", lambda dtype: ["onednn"])
    shapes: list[tuple[int, ...]] = []

    def gain(linear: Any, way: str) -> float:
        shapes.append(tuple(linear.weight.shape))
        return 1.5

    monkeypatch.setattr(linears, "_gain", gain)
    return shapes


def layers(*shapes: tuple[int, int]) -> Any:
    return torch.nn.ModuleList(torch.nn.Linear(inputs, outputs) for outputs, inputs in shapes)


def packed(model: Any) -> list[bool]:
    return [type(layer) is linears.PackedLinear for layer in model]


def test_a_shape_is_measured_at_the_first_start_only(measured: list[tuple[int, ...]]) -> None:
    for shapes in (((16, 32), (16, 32)), ((16, 32), (48, 32))):
        model = layers(*shapes)
        linears.pack_linears(model)
        assert all(packed(model))
    assert measured == [(16, 32), (48, 32)]


def test_another_number_format_is_another_measurement(measured: list[tuple[int, ...]]) -> None:
    linears.pack_linears(layers((16, 32)))
    linears.pack_linears(layers((16, 32)).bfloat16())
    assert measured == [(16, 32), (16, 32)]


@pytest.mark.parametrize(
    "change",
    [
        ("cpu_name", lambda: "another processor"),
        ("cpu_flags", lambda: frozenset({"other"})),
        ("torch.get_num_threads", lambda: 77),
        ("torch.__version__", "0.0"),
        ("Path.read_text", lambda *_, **__: "other code"),
    ],
    ids=lambda change: str(change[0]),
)
def test_another_machine_or_another_code_measures_anew(
    measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, change: tuple[str, Any]
) -> None:
    linears.pack_linears(layers((16, 32)))
    monkeypatch.setattr(f"llm_runtime.compute.linears.{change[0]}", change[1])
    linears.pack_linears(layers((16, 32)))
    assert len(measured) == 2


def test_a_remembered_loss_keeps_the_layer_as_it_is(
    measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "_gain", lambda linear, way: 0.5)
    linears.pack_linears(layers((16, 32)))
    monkeypatch.setattr(linears, "_gain", lambda *_: pytest.fail("measured again"))
    model = layers((16, 32))
    linears.pack_linears(model)
    assert packed(model) == [False]


@pytest.mark.parametrize("close", [1.1, 1.0, 0.9])
def test_what_may_be_noise_is_measured_again(
    measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, close: float
) -> None:
    monkeypatch.setattr(linears, "_gain", lambda *_: measured.append((0,)) or close)
    for _ in range(2):
        linears.pack_linears(layers((16, 32)))
    assert len(measured) == 2


def test_a_damaged_or_missing_cache_costs_a_measurement_and_nothing_else(
    measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    linears.pack_linears(layers((16, 32)))
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(b"{")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    model = layers((16, 32))
    linears.pack_linears(model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    linears.pack_linears(layers((16, 32)))
    assert len(measured) == 3
    assert packed(model) == [True]


def test_a_large_product_is_repeated_as_often_as_it_takes_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    calls: list[float] = []

    def slow(_: Any) -> None:
        now[0] += 0.05
        calls.append(now[0])

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(linears.time, "perf_counter", clock)
    linears._speedup(torch.randn(8, 32), slow, lambda _: None)
    assert len(calls) == linears._LEAST_REPEATS


GAINS = {"onednn": 1.5, "blocks": 2.0}


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both ways are there and gain as in GAINS; the cache is an empty one."""
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linears, "_gain", lambda linear, way: GAINS[way])


@pytest.mark.usefixtures("both")
def test_the_way_that_gains_most_is_taken_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers((16, 32))
    linears.pack_linears(model)
    assert type(model[0]) is BlockLinear
    monkeypatch.setattr(linears, "_gain", lambda *_: pytest.fail("measured again"))
    model = layers((16, 32))
    linears.pack_linears(model)
    assert type(model[0]) is BlockLinear
    monkeypatch.setitem(GAINS, "onednn", 2.5)
    monkeypatch.setattr(linears, "_gain", lambda linear, way: GAINS[way])
    model = layers((48, 32))
    linears.pack_linears(model)
    assert packed(model) == [True]


@pytest.mark.parametrize(
    ("blocks", "joinable", "taken"),
    [
        (0.9, False, torch.nn.Linear),
        (0.9, True, linears.BlockLinear),
        (0.7, True, torch.nn.Linear),
    ],
)
def test_layers_that_can_run_in_one_call_are_in_blocks_unless_these_are_clearly_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blocks: float, joinable: bool, taken: type
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linears, "_gain", lambda _, way: {"onednn": 1.0, "blocks": blocks}[way])
    model = layers((16, 32))
    linears.pack_linears(model, joinable=joinable)
    assert type(model[0]) is taken


@pytest.mark.usefixtures("both")
def test_a_weight_that_was_stored_in_bfloat16_is_kept_so_and_measured_as_such() -> None:
    for stored in (torch.float32, torch.bfloat16):
        model = layers((16, 32), (16, 32))
        model.to(stored).float()
        x = torch.randn(3, 32)
        expected = [layer(x) for layer in model]
        linears.pack_linears(model)
        for layer, theirs in zip(model, expected, strict=True):
            assert layer.weight.dtype is stored
            torch.testing.assert_close(layer(x), theirs, rtol=1e-5, atol=1e-6)
    names = linears._memory().read()
    assert {name.replace(", stored narrow", "") for name in names} == {
        "16x32 float32 onednn",
        "16x32 float32 blocks",
    }
    assert len(names) == 4


@pytest.mark.usefixtures("both")
def test_half_precision_and_a_machine_without_kernels_have_one_way_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert linears._ways(torch.float16) == ["onednn"]
    monkeypatch.setattr(native, "library", lambda: None)
    assert linears._ways(torch.float32) == ["onednn"]


def test_without_any_way_layers_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linears, "_ways", lambda dtype: [])
    model = layers((16, 32))
    linears.pack_linears(model)
    assert type(model[0]) is torch.nn.Linear


def test_what_is_measured_here_is_a_gain_or_a_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = layers((64, 32))
    expected = model[0](torch.ones(1, 32))
    (gains,) = linears._gains({(64, 32, torch.float32): model[0]}).values()
    assert gains
    assert all(gain > 0 for gain in gains.values())
    linears.pack_linears(model)
    torch.testing.assert_close(model[0](torch.ones(1, 32)), expected)
