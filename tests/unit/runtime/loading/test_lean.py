"""The engine's process imports a part of torch and Transformers:
the models are the same, and what is left out can still be had."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

from llm_runtime.loading import load  # noqa: E402
from llm_runtime.loading.agreement import difference, probe_tokens  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from unit.runtime.engine.architectures import ARCHITECTURES, VOCABULARY  # noqa: E402

HEAVY = (
    "accelerate", "scipy.optimize", "sympy", "torch._inductor", "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes", "torch.distributed.fsdp",
)  # fmt: skip
LEAN = "import sys, json; from llm_runtime.loading.lean import import_lean; import_lean()\n"
EVERY_ARCHITECTURE = """
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names
for name in names.values():
    getattr(transformers, name)
print(json.dumps([name for name in {heavy} if name in sys.modules]))
"""
COMPILED = """
import torch, torch._dynamo.config
from torch._dynamo.exc import Unsupported
doubled = torch.compile(lambda tensor: tensor * 2, backend="eager")
again = {name: id(module) for name, module in sys.modules.items() if name.startswith("torch._dynamo")}
import torch._dynamo.guards
whole = all(id(sys.modules[name]) == module for name, module in again.items())
print(json.dumps([doubled(torch.ones(2)).tolist(), torch._dynamo.__name__, whole]))
"""
MASKED = """
import torch
from transformers import masking_utils
mask = masking_utils.TransformGetItemToIndex()
print(json.dumps(type(mask).__module__))
"""
LOGITS = """
from pathlib import Path
from llm_runtime.loading import load
import torch
found = {{}}
for folder in json.loads(sys.argv[1]):
    folder = Path(folder)
    settings = load.read_settings(folder)
    load.check_buildable(folder, settings)
    model = load._weights(folder, settings, "cpu", torch.float32, "none", None)
    found[folder.name] = load.reference_logits(model, {probe})
print(json.dumps([found, [name for name in {heavy} if name in sys.modules]]))
"""


def lean(program: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LEAN + program, *arguments],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_architecture_can_be_imported_and_brings_nothing_heavy() -> None:
    assert lean(EVERY_ARCHITECTURE.format(heavy=HEAVY)) == []


def test_the_compiler_gives_way_to_the_real_one_when_something_is_wanted_of_it() -> None:
    assert lean(COMPILED) == [[2.0, 2.0], "torch._dynamo", True]


def test_a_mask_that_needs_the_compilers_class_gets_it() -> None:
    assert lean(MASKED) == "torch._dynamo._trace_wrapped_higher_order_op"


def test_a_llama_is_built_and_read_without_anything_heavy(tmp_path: Path) -> None:
    folder = tiny_model.make(tmp_path / "llama")
    program = LOGITS.format(heavy=HEAVY, probe=probe_tokens(VOCABULARY))
    logits, heavy = lean(program, json.dumps([str(folder)]))
    assert len(logits["llama"]) >= VOCABULARY
    assert heavy == []


def test_every_architecture_has_the_logits_that_it_has_with_all_of_transformers(
    tmp_path: Path,
) -> None:
    folders = {each.name: each.make(tmp_path / each.name) for each in ARCHITECTURES}
    probe = probe_tokens(VOCABULARY)
    found, _ = lean(
        LOGITS.format(heavy=HEAVY, probe=probe),
        json.dumps([str(each) for each in folders.values()]),
    )
    apart = {}
    for name, folder in folders.items():
        settings = load.read_settings(folder)
        model = load._weights(folder, settings, "cpu", torch.float32, "none", None)
        apart[name] = difference(found[name], load.reference_logits(model, probe))
    assert {name: value for name, value in apart.items() if not value < 1e-5} == {}
