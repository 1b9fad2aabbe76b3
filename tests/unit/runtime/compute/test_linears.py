"""Weights are replaced in place: the memory of the old ones is given back while the new ones are
made."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

LAYERS = 48
SIZE = 768
WEIGHTS_MIB = LAYERS * SIZE * SIZE * 4 >> 20
PACK = "from llm_runtime.compute.linears import pack_linears; pack_linears(model)"
QUANTIZE = (
    "from llm_runtime.compute.int8 import quantize_int8; quantize_int8(model, lambda:"
    " model(torch.zeros(1, SIZE)))"
)
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
linears._gain = lambda weight: 2.0
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


@pytest.mark.parametrize("change", [PACK, QUANTIZE], ids=["packed", "int8"])
def test_a_model_whose_layers_are_replaced_never_takes_its_weights_twice(change: str) -> None:
    program = PROGRAM.format(layers=LAYERS, size=SIZE, change=change)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 0.5 * WEIGHTS_MIB
