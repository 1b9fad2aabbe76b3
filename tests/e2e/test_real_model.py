"""The runtime alone with a real instruction-tuned model:
32 clients at once read what `generate` says to each."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import smollm
from devstack.demo import CACHE
from devstack.ports import free_port
from devstack.processes import Child, answers, wait_until
from e2e.reference import greedy
from e2e.streams import texts_at_once

pytestmark = [pytest.mark.e2e, pytest.mark.torch]

TOPICS = ("rain", "bread", "the moon", "Lisbon", "a violin", "sleep", "chess", "the sea")
STARTS = (
    "Explain in one sentence: ",
    "Write a short story about ",
    "A poem on ",
    "The most important fact about ",
)
PROMPTS = [f"{start}{topic}" for start in STARTS for topic in TOPICS]
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def model() -> Path:
    """SmolLM2-135M-Instruct as the demo makes it."""
    return smollm.make(CACHE / "models" / "smollm2-135m-instruct", progress=lambda _: None)


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    # Weights are bfloat16 numbers; computing in float32 leaves no near-ties to rounding.
    env = {
        "MODEL_PATH": str(model),
        "MODEL_NAME": "smollm",
        "ENGINE__DTYPE": "float32",
        "ENGINE__MAX_MODEL_LENGTH": "256",
        "ENGINE__MAX_BATCH_SIZE": "32",
        "AUTHENTICATION": "Disabled",
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "PATH": os.environ["PATH"],
    }
    folder = tmp_path_factory.mktemp("runtime")
    child = Child(
        "runtime",
        [sys.executable, "-m", "llm_runtime", "serve"],
        folder / "log",
        env=env,
        cwd=folder,
    )
    try:
        wait_until(child, lambda: answers(f"http://127.0.0.1:{port}/readyz"), timeout_seconds=180)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.stop()


async def test_32_streams_of_a_real_model_each_equal_generate(url: str, model: Path) -> None:
    body = {"model": "smollm", "temperature": 0, "max_tokens": MAX_TOKENS}
    texts = await texts_at_once(url, {}, [{**body, "prompt": prompt} for prompt in PROMPTS])
    assert (
        len(set(texts)) > len(PROMPTS) / 2
    )  # Two short answers may be the same; all alike would prove nothing.
    assert texts == [greedy(model, prompt, MAX_TOKENS) for prompt in PROMPTS]
