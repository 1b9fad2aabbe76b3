"""The built images, run as a cluster runs them.
`make test-images` names them; without an engine nothing here runs.

Every container has a read-only root, no capabilities, no network,
and the user that the image gives it.
"""

import ast
import json
import os
import subprocess
from typing import Any

import pytest

IMAGES = dict(word.split("=", 1) for word in os.environ.get("LLM_OPERATOR_IMAGES", "").split())
DOCKER = os.environ.get("DOCKER", "docker")
GUARDED = ["--rm", "--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
           "--tmpfs", "/tmp"]  # fmt: skip
MEGABYTE = 1_000_000
LARGEST = {"operator": 250 * MEGABYTE, "cpu": 1_250 * MEGABYTE, "cuda": 5_400 * MEGABYTE}

pytestmark = pytest.mark.skipif(
    not IMAGES, reason="no images are named: make build-docker test-images"
)


@pytest.fixture(params=["operator", "runtime"])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen not in IMAGES:
        pytest.skip(f"no {chosen} image is named")
    return chosen


def run(name: str, *command: str, entrypoint: str = "") -> subprocess.CompletedProcess[str]:
    way = ["--entrypoint", entrypoint] if entrypoint else []
    return subprocess.run(
        [DOCKER, "run", *GUARDED, *way, IMAGES[name], *command], capture_output=True, text=True
    )


def shell(name: str, script: str) -> str:
    done = run(name, "-c", script, entrypoint="sh")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def python(name: str, program: str) -> str:
    done = run(name, "-c", program, entrypoint="python")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspected(name: str) -> dict[str, Any]:
    done = subprocess.run(
        [DOCKER, "image", "inspect", IMAGES[name]], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def accelerator(name: str) -> str:
    labels = inspected(name)["Config"]["Labels"]
    return str(labels.get("dev.llm-operator.accelerator", name))


def test_the_size_is_within_what_the_docs_say(name: str) -> None:
    assert inspected(name)["Size"] <= LARGEST[accelerator(name)]


def test_the_user_has_a_name(name: str) -> None:
    assert inspected(name)["Config"]["User"] == "65532:65532"
    assert shell(name, "id -un; id -gn").split() == ["llm", "llm"]
    assert python(name, "import getpass; print(getpass.getuser())") == "llm"


def test_labels_say_what_it_is(name: str) -> None:
    labels = inspected(name)["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"llm-{name}"
    assert labels[f"{prefix}version"]
    assert labels[f"{prefix}licenses"] == "Apache-2.0"


def test_it_has_no_installer_and_no_compiler(name: str) -> None:
    tools = "pip pip3 uv cc gcc g++ c++ clang make perl apt-get git"
    assert shell(name, f"for tool in {tools}; do command -v $tool || true; done") == ""
    assert (
        python(
            name,
            "import importlib.util as u; print([m for m in ('pip', 'ensurepip') if u.find_spec(m)])",
        )
        == "[]"
    )


def test_no_file_can_be_changed_by_its_user(name: str) -> None:
    places = "/opt /usr /etc /var"
    assert shell(name, f"find {places} -xdev -writable ! -type l 2>/dev/null || true") == ""


def test_bytecode_is_there_once_and_for_what_is_loaded(name: str) -> None:
    """Two of one module, `x.pyc` and `__pycache__/x.*.pyc`, take space for nothing;
    none makes each start slow."""
    assert shell(name, "find /opt -name '*.pyc' ! -path '*/__pycache__/*'") == ""
    program = f"""
import sys, llm_{name}.__main__
from pathlib import Path
files = [(m, getattr(m, "__file__", None) or "") for m in sys.modules.values()]
ours = [m for m, file in files if file.startswith("/opt/") and file.endswith(".py")]
print(sum(Path(m.__cached__).is_file() for m in ours) / len(ours))"""
    assert float(python(name, program)) > 0.95


def test_it_says_what_it_is_made_of(name: str) -> None:
    bill = json.loads(shell(name, f"cat /opt/llm-{name}/sbom.cdx.json"))
    assert bill["bomFormat"] == "CycloneDX"
    named = {component["name"] for component in bill["components"]}
    assert {"operator": "kopf", "runtime": "torch"}[name] in named
    installed = set(
        python(
            name, "from importlib.metadata import distributions as d; print(*{p.name for p in d()})"
        ).split()
    )
    assert installed - {"llm-operator"} == named - {"llm-operator"}


def test_it_says_how_it_is_used(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_the_operator_says_what_is_missing_instead_of_a_traceback() -> None:
    if "operator" not in IMAGES:
        pytest.skip("no operator image is named")
    done = run("operator")
    assert done.returncode != 0
    assert "/etc/llm-operator/config/config.yaml" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


COMPUTES = """
import time
started = time.monotonic()
import torch, transformers
from llm_runtime.compute import native
config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128
)
torch.manual_seed(0)
model = transformers.AutoModelForCausalLM.from_config(config).eval()
tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, pad_token_id=0)
assert tokens.shape == (1, 8), tokens.shape
model.train()(torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
assert native.library() is not None, "the kernels are not there"
import torch.distributed, peft
print(torch.cuda.is_available(), torch.version.cuda is not None, f"{time.monotonic() - started:.1f} s")
"""


def test_the_runtime_computes_on_a_cpu() -> None:
    """Also by its own kernels, which an image without a compiler must have been given."""
    if "runtime" not in IMAGES:
        pytest.skip("no runtime image is named")
    available, cuda, seconds = python("runtime", COMPUTES).split(maxsplit=2)
    print(seconds)
    assert available == "False"
    assert cuda == str(accelerator("runtime") == "cuda")
    assert run("runtime", "fit", "--help").returncode == 0


def test_every_library_of_the_runtime_finds_those_that_it_is_linked_with() -> None:
    """By a name anywhere in the image: torch and NVIDIA's packages load each other's before they
    are asked for."""
    if "runtime" not in IMAGES:
        pytest.skip("no runtime image is named")
    program = """
from pathlib import Path
import torch
folder = Path(torch.__file__).parent / "lib"
import ctypes
failed = []
for file in sorted(folder.glob("*.so")):
    try: ctypes.CDLL(str(file))
    except OSError as error: failed.append(str(error))
print(failed)
"""
    failed = python("runtime", program)
    # libcuda.so.1 is the driver's, which the node brings.
    assert [fault for fault in ast.literal_eval(failed) if "libcuda.so.1" not in fault] == []
