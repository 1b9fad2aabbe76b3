"""Embeddings are sentence-transformers' own to 1e-5, whatever a text is computed together with."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute.embedder import groups, pooled  # noqa: E402
from llm_runtime.contract import AdapterConfig, EngineConfig, ModelConfig, RuntimeConfig  # noqa: E402
from llm_runtime.engine.client import EngineClient  # noqa: E402
from llm_runtime.errors import (  # noqa: E402
    ConfigInvalid,
    InvalidRequest,
    ModelCorrupt,
    ModelUnsupported,
)
from llm_runtime.files.sentence_files import POOLINGS  # noqa: E402
from llm_runtime.loading.build import build_engine  # noqa: E402
from llm_runtime.request import FinishReason, GenerationRequest, Sampling  # noqa: E402
from unit.runtime import embedding_models as models  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402
from waiting import until  # noqa: E402

NEAR = 1e-5
GOLDEN = Path(__file__).with_name("sentence_transformers.json")
"""Vectors by sentence-transformers 6.2, in float32."""


def config(folder: Path, **engine: Any) -> RuntimeConfig:
    return RuntimeConfig(
        model=ModelConfig(name="embedder", path=str(folder)),
        engine=EngineConfig(**{"device": "cpu", "dtype": "float32", **engine}),
    )


@asynccontextmanager
async def served(folder: Path, **engine: Any) -> AsyncIterator[EngineClient]:
    client, _ = build_engine(config(folder, **engine), folder)
    try:
        yield client
    finally:
        await asyncio.to_thread(client.close)


def request(ids: Sequence[int], unpooled: int = 0, tenant: str = "") -> GenerationRequest:
    return GenerationRequest(
        "r", tuple(ids), Sampling(0), embeds=True, unpooled_tokens=unpooled, tenant=tenant
    )


async def vector(client: EngineClient, text: str | Sequence[int], unpooled: int = 0) -> Any:
    ids = client.codec.encode(text) if isinstance(text, str) else text
    [event] = [event async for event in client.generate(request(ids, unpooled))]
    assert event.finish_reason is FinishReason.STOP, event.error
    return torch.frombuffer(bytearray(base64.b64decode(event.text)), dtype=torch.float32)


async def vectors(client: EngineClient, texts: Sequence[str], unpooled: int = 0) -> Any:
    """All at once, so that they share steps."""
    return torch.stack(await asyncio.gather(*(vector(client, text, unpooled) for text in texts)))


def reference(name: str, compute: Callable[[], Any]) -> Any:
    """What sentence-transformers says. It takes fifteen seconds to import: it is asked with
    UPDATE_GOLDEN=1, and its answers are kept in a file."""
    if os.environ.get("UPDATE_GOLDEN"):
        kept = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        kept[name] = [[float(f"{value:.8g}") for value in row] for row in compute().tolist()]
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in sorted(kept))
        GOLDEN.write_text(f"{{\n{lines}\n}}\n")
    return torch.tensor(json.loads(GOLDEN.read_text())[name])


def encoded(folder: Path, texts: Sequence[str]) -> Callable[[], Any]:
    def compute() -> Any:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return model.encode(list(texts), convert_to_tensor=True)

    return compute


def mean_and_normalised(folder: Path) -> Path:
    normalise = ("Normalize", {})
    return models.describe(models.bert(folder), models.pooling("mean_tokens"), normalise)


def first_through_dense(folder: Path) -> Path:
    models.roberta(folder)
    behind = models.dense(folder, 2, 20)
    return models.describe(folder, models.pooling("cls_token"), behind, max_seq_length=64)


def joined_of_windows(folder: Path) -> Path:
    both = {"embedding_dimension": 32, "pooling_mode": ["max", "mean_sqrt_len_tokens"]}
    return models.describe(models.modern_bert(folder), ("Pooling", both))


def last_of_a_decoder(folder: Path) -> Path:
    normalise = ("Normalize", {})
    return models.describe(models.qwen3(folder), models.pooling("lasttoken"), normalise)


def lowercased_and_cut(folder: Path) -> Path:
    models.bert(folder)
    weighted = models.pooling("weightedmean_tokens")
    return models.describe(folder, weighted, do_lower_case=True, truncate_dim=12)


@pytest.mark.parametrize(
    "make",
    [
        mean_and_normalised,
        first_through_dense,
        joined_of_windows,
        last_of_a_decoder,
        lowercased_and_cut,
        models.bert,
    ],
)
async def test_embeddings_are_those_of_sentence_transformers(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make(tmp_path / "model")
    texts = [text[:50] for text in models.TEXTS]
    async with served(folder) as client:
        found = await vectors(client, texts)
        assert client.embedding
        assert client.embedding.dimensions == found.shape[1]
    expected = reference(make.__name__, encoded(folder, texts))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= NEAR * max(1.0, float(expected.abs().max()))


async def test_prompts_are_read_and_left_out_of_the_pooling_where_they_are_to_be(
    tmp_path: Path,
) -> None:
    folder = models.bert(tmp_path / "model")
    said: Any = {"prompts": {"query": "query: ", "plain": ""}, "default_prompt_name": "query"}
    models.describe(folder, models.pooling("mean_tokens", include_prompt=False), **said)
    async with served(folder) as client:
        assert client.embedding
        query = client.embedding.prompts["query"]
        assert (client.embedding.default_prompt, query.text) == ("query", "query: ")
        prefixed = [query.text + text for text in models.TEXTS[:3]]
        found = await vectors(client, prefixed, query.unpooled_tokens)
    expected = reference("prompt", encoded(folder, models.TEXTS[:3]))
    assert (found - expected).abs().max() <= NEAR


@pytest.mark.parametrize("mode", POOLINGS)
def test_each_pooling_is_the_one_of_the_library(mode: str) -> None:
    hidden = models.numbers(3, 9, 8)
    lengths = torch.tensor([9, 4, 1])

    def compute() -> Any:
        from sentence_transformers.sentence_transformer.modules import Pooling

        mask = (torch.arange(9) < lengths[:, None]).long()
        said = {"token_embeddings": hidden, "attention_mask": mask}
        return Pooling(8, pooling_mode=mode)(said)["sentence_embedding"]

    theirs = reference(f"pooling {mode}", compute)
    ours = pooled(hidden, torch.zeros(3, dtype=torch.long), lengths, [mode])
    assert torch.allclose(ours, theirs, atol=1e-6)


async def test_a_long_text_a_foreign_token_and_a_prompt_to_continue_are_refused(
    tmp_path: Path,
) -> None:
    async with served(mean_and_normalised(tmp_path / "model")) as client:
        assert client.max_model_length == 130  # Positions, though the engine would take more.
        with pytest.raises(InvalidRequest, match="at most 130 tokens, not 131"):
            client.generate(request([5] * 131))
        with pytest.raises(InvalidRequest, match="vocabulary"):
            client.generate(request([5, 999]))
        with pytest.raises(InvalidRequest, match="makes embeddings"):
            client.generate(GenerationRequest("r", (5, 6), Sampling(max_tokens=4)))
    generates, _ = build_engine(
        config(tiny_model.make(tmp_path / "llama"), max_model_length=64), tmp_path / "llama"
    )
    try:
        with pytest.raises(InvalidRequest, match="makes no embeddings"):
            generates.generate(request([5, 6]))
    finally:
        await asyncio.to_thread(generates.close)


async def test_texts_of_many_share_steps_and_one_who_leaves_leaves_the_others(
    tmp_path: Path,
) -> None:
    folder = mean_and_normalised(tmp_path / "model")
    async with served(folder, max_batch_size=8, max_queue_length=4) as client:
        streams = [client.generate(request([5] * 60, tenant=f"t{n % 3}")) for n in range(100)]
        for stream in streams[50:]:
            await stream.aclose()
        for stream in streams[:50]:
            [event] = [event async for event in stream]
            assert event.finish_reason is FinishReason.STOP
        await until(lambda: client.outstanding == 0)
        assert client.stats().steps <= 14  # 100 texts, 8 in a step.


def test_groups_are_of_texts_of_about_one_length() -> None:
    lengths = [100, 3, 98, 4, 97, 2]
    order = sorted(range(6), key=lambda number: -lengths[number])
    assert list(groups(order, lengths)) == [[0, 2, 4], [3, 1, 5]]


async def test_a_masked_model_embeds_if_asked_to_and_its_head_is_left_out(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM, BertConfig

    folder = models.bert(tmp_path / "model")
    masked = AutoModelForMaskedLM.from_config(BertConfig(**models.SHAPE))
    masked.bert.load_state_dict(AutoModel.from_pretrained(folder).state_dict(), strict=False)
    masked.save_pretrained(folder)
    with pytest.raises(ModelUnsupported, match="task embed"):
        build_engine(config(folder), folder)
    async with served(folder, task="embed") as client:
        found = await vectors(client, models.TEXTS[:2])
    expected = reference("masked", encoded(folder, models.TEXTS[:2]))
    assert (found - expected).abs().max() <= NEAR


@pytest.mark.parametrize(
    ("engine", "error", "says"),
    [
        ({"quantization": "int8"}, ConfigInvalid, "quantization int8 is for models that generate"),
        ({"task": "generate"}, ModelUnsupported, "no causal language model"),
    ],
)
def test_what_does_not_go_with_embeddings_is_refused_by_name(
    engine: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    folder = mean_and_normalised(tmp_path / "model")
    with pytest.raises(error, match=says):
        build_engine(config(folder, **engine), folder)


def test_adapters_and_modules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = mean_and_normalised(tmp_path / "model")
    adapted = config(folder).model_copy(
        update={"adapters": (AdapterConfig(name="legal", path="."),)}
    )
    with pytest.raises(ConfigInvalid, match="adapters are for models that generate"):
        build_engine(adapted, folder)
    (folder / "2_Dense").mkdir()
    with pytest.raises(ModelUnsupported, match="weights of 2_Dense are not there"):
        build_engine(config(models.describe(folder, models.pooling(), ("Dense", {}))), folder)
    behind = models.dense(models.bert(tmp_path / "other"), 2, 20)
    (tmp_path / "other/2_Dense/config.json").write_text("{}")
    models.describe(tmp_path / "other", models.pooling("cls_token", "max_tokens"), behind)
    with pytest.raises(ModelUnsupported, match="gives no embedding"):
        build_engine(config(tmp_path / "other"), tmp_path / "other")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = mean_and_normalised(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 1}))
    with pytest.raises(ModelCorrupt, match="do not belong to its config"):
        build_engine(config(folder), folder)
