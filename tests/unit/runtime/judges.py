"""The server that the official clients judge, and where their packages are kept."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devstack.cache import CACHE
from fakes import FakeCodec, ScriptedEngine, ScriptedStream, token_id
from harness import KEY
from llm_runtime.errors import QueueFull
from llm_runtime.request import GenerationRequest
from unit.runtime.tools.templates import QWEN

FOR_NODE = {"openai": "7.57.0", "@anthropic-ai/sdk": "1.14.0"}

SCRIPTS_FOR_NODE = Path(__file__).parents[2] / "judges"
NEEDS_NODE = pytest.mark.skipif(
    None in map(shutil.which, ("node", "npm")),
    reason="Node.js 20 or newer with npm is not installed",
)

HELLO = ("Hello", " there", "!")
JSON = ('{"city":', ' "Kiel"}')
CALL = ("<tool_call>\n", '{"name": "weather", "arguments": ', '{"city": "Kiel"}}', "\n</tool_call>")
SCRIPTS = {"json_schema": JSON, "json_object": JSON, "grammar": CALL}


class JudgedEngine(ScriptedEngine):
    """Says what the request's constraint asks for;
    refuses whoever says `always busy`, or `once busy` at first."""

    def __init__(self) -> None:
        super().__init__(codec=FakeCodec(QWEN))
        self.refused = 0

    def generate(self, request: GenerationRequest) -> ScriptedStream:
        words = request.prompt_token_ids
        if token_id("busy") in words and (token_id("always") in words or not self.refused):
            self.refused += 1
            raise QueueFull("As many requests wait as may wait.")
        bound = request.sampling.constraint
        self.script = SCRIPTS[bound.kind] if bound else HELLO
        return super().generate(request)


def passed_by_node(script: str, package: str, url: str) -> int:
    """How many checks of a script of tests/judges pass with a client for Node."""
    environment = {
        **os.environ,
        "BASE_URL": url,
        "API_KEY": KEY,
        "PACKAGES": str(node_package(package)),
    }
    command = ["node", str(SCRIPTS_FOR_NODE / script)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.count("ok ")


def node_package(name: str) -> Path:
    """A folder from which Node finds a client; installed once, outside of the repository."""
    version = FOR_NODE[name]
    folder = CACHE / "node" / f"{name.replace('/', '-')}-{version}"
    if not (folder / "node_modules" / name / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        flags = [
            "--no-save",
            "--no-package-lock",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
            folder,
        ]
        subprocess.run(
            [_npm(), "install", *flags, f"{name}@{version}"],
            check=True,
            capture_output=True,
        )
    return folder


def _npm() -> str:
    if found := shutil.which("npm"):
        return found
    raise FileNotFoundError("npm is not there: install Node.js 20 or newer")
