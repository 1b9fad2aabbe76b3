"""Embeddings stay as they were stored: half the memory, and not a bit of an answer changes."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute import linears, native  # noqa: E402
from llm_runtime.compute.embeddings import (  # noqa: E402
    SharedEmbedding,
    StoredEmbedding,
    shrink_embeddings,
)
from unit.runtime import tiny_model  # noqa: E402

IDS = torch.arange(64).view(1, -1)


def model(folder: Path, *, stored: Any = torch.bfloat16, tied: bool = True) -> Any:
    """A tiny Llama in float32, of a checkpoint in the format `stored`."""
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(tiny_model.make(folder, tied=tied))
    return made.to(stored).float().requires_grad_(False)


def everything(way: str) -> Any:
    """Every shape gains by `way`."""
    return lambda samples: {shape: {way: 2.0} for shape in samples}


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "_gains", everything("onednn"))


@pytest.fixture
def packs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip("no compiled kernels: apt-get install g++")
    monkeypatch.setattr(linears, "_gains", everything("blocks"))


def logits(made: Any) -> Any:
    with torch.inference_mode():
        return made(input_ids=IDS).logits


@pytest.mark.usefixtures("packs")
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_in_bfloat16_keeps_its_embedding_in_half_the_memory(
    tmp_path: Path, tied: bool
) -> None:
    made = model(tmp_path, tied=tied)
    linears.pack_linears(made)
    before = logits(made)
    size = made.get_input_embeddings().weight.nbytes
    assert shrink_embeddings(made) == size // 2
    assert type(made.get_input_embeddings()) is StoredEmbedding
    assert torch.equal(logits(made), before)
    assert made.dtype is torch.float32


@pytest.mark.usefixtures("packs_in_blocks")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
def test_a_weight_in_blocks_is_in_memory_once(tmp_path: Path, stored: Any) -> None:
    made = model(tmp_path, stored=stored)
    linears.pack_linears(made)
    before = logits(made)
    embedding = made.get_input_embeddings()
    size = embedding.weight.nbytes
    looked_up = embedding(IDS)
    assert shrink_embeddings(made) == size
    assert type(made.get_input_embeddings()) is SharedEmbedding
    assert torch.equal(made.get_input_embeddings()(IDS), looked_up)
    assert torch.equal(logits(made), before)
    assert made.dtype is torch.float32


@pytest.mark.usefixtures("packs_in_blocks")
def test_an_embedding_of_its_own_is_not_read_from_the_output_layer(tmp_path: Path) -> None:
    made = model(tmp_path, tied=False)
    linears.pack_linears(made)
    shrink_embeddings(made)
    assert type(made.get_input_embeddings()) is StoredEmbedding


def test_a_weight_that_the_output_layer_still_shares_stays(tmp_path: Path) -> None:
    made = model(tmp_path)
    assert shrink_embeddings(made) == 0
    assert type(made.get_input_embeddings()) is torch.nn.Embedding


@pytest.mark.parametrize("odd", [0.1, 1e-40])
def test_an_embedding_that_bfloat16_can_not_hold_stays(tmp_path: Path, odd: float) -> None:
    made = model(tmp_path, tied=False)
    made.get_input_embeddings().weight[-1, -1] = odd
    assert shrink_embeddings(made) == 0


def test_other_number_formats_and_unknown_code_stay(tmp_path: Path) -> None:
    assert shrink_embeddings(model(tmp_path, tied=False).bfloat16()) == 0
    other = model(tmp_path, tied=False)
    other.__class__ = type("OtherForCausalLM", (type(other),), {})
    assert shrink_embeddings(other) == 0
