"""The slow path's memory of sequences: what it keeps, forgets, and reads again."""

import gc

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

from llm_runtime.compute.logits.sampler import Sampler  # noqa: E402
from llm_runtime.compute.sequential import SequentialRunner  # noqa: E402
from llm_runtime.contract import EngineConfig, ModelConfig  # noqa: E402
from llm_runtime.engine.scheduler import Batch, Span  # noqa: E402
from llm_runtime.engine.sequence import Sampled, Sequence  # noqa: E402
from llm_runtime.loading.load import load, reference_logits  # noqa: E402
from llm_runtime.loading.loaded import Loaded  # noqa: E402
from llm_runtime.request import FinishReason, GenerationRequest, Sampling  # noqa: E402
from unit.runtime import tiny_model  # noqa: E402

PROMPT = tuple(range(20, 40))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(
        tiny_model.make(tmp_path_factory.mktemp("tiny")),
        EngineConfig(device="cpu"),
        ModelConfig(name="m"),
    )


def sequence(loaded: Loaded) -> Sequence:
    return Sequence(
        GenerationRequest("r", PROMPT, Sampling(max_tokens=9, temperature=0.0)), loaded.codec
    )


def span(of: Sequence, start: int, end: int) -> Batch:
    return Batch((Span(of, start, end - start, samples=end == len(of.token_ids)),))


def agrees(loaded: Loaded, runner: SequentialRunner, batch: Batch) -> bool:
    expected = torch.tensor(reference_logits(loaded.model, list(PROMPT)))
    return bool(torch.allclose(runner.logits(batch)[0], expected, atol=1e-3))


def test_a_sequence_that_nobody_holds_any_more_is_forgotten(loaded: Loaded) -> None:
    runner = SequentialRunner(loaded.model, Sampler())
    one = sequence(loaded)
    runner.forward(span(one, 0, 20))
    assert len(runner._states) == 1
    del one
    gc.collect()
    assert len(runner._states) == 0


def test_a_finished_sequence_is_forgotten_though_its_reader_holds_it(loaded: Loaded) -> None:
    runner = SequentialRunner(loaded.model, Sampler())
    one = sequence(loaded)
    other = sequence(loaded)
    runner.forward(span(one, 0, 20))
    one.finish(FinishReason.CANCELLED)
    runner.forward(span(other, 0, 20))
    assert list(runner._states) == [other]


def test_a_sequence_that_was_put_back_into_the_queue_is_read_again(loaded: Loaded) -> None:
    runner = SequentialRunner(loaded.model, Sampler())
    one = sequence(loaded)
    first = runner.forward(span(one, 0, 20))
    one.computed = 0
    assert runner.forward(span(one, 0, 20)) == first


def test_what_a_scheduler_skipped_is_read_all_the_same(loaded: Loaded) -> None:
    """As with a hit in a prefix cache, which this runner does not have."""
    assert agrees(loaded, SequentialRunner(loaded.model, Sampler()), span(sequence(loaded), 12, 20))


def test_prompts_in_one_piece_are_read_with_their_last_chunk(loaded: Loaded) -> None:
    lengths: list[int] = []
    hook = loaded.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, ids: lengths.append(ids[0].shape[1])
    )
    runner = SequentialRunner(loaded.model, Sampler(), whole_prompts=True)
    one = sequence(loaded)
    assert runner.forward(span(one, 0, 8)) == []
    one.computed = 8
    (sampled,) = runner.forward(span(one, 8, 20))
    one.computed = 20
    one.append(Sampled(sampled.token_id))
    runner.forward(span(one, 20, 21))
    hook.remove()
    assert lengths == [20, 1]
