"""Choosing tokens: each option against a direct computation."""

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from llm_runtime.engine.sampler import Sampler  # noqa: E402
from llm_runtime.engine.sequence import Sequence  # noqa: E402
from unit.runtime.engine.fakes import sequence  # noqa: E402

VOCABULARY = 500


@pytest.fixture
def logits() -> Any:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def draws(logits: Any, count: int = 4000, **sampling: Any) -> Counter[int]:
    rows: list[Sequence] = [sequence(**sampling) for _ in range(count)]
    return Counter(s.token_id for s in Sampler(seed=1).sample(logits.expand(count, -1), rows) if s.token_id is not None)


def test_greedy_is_the_most_likely(logits: Any) -> None:
    assert draws(logits, 5, temperature=0.0) == {int(logits.argmax()): 5}


def test_frequencies_follow_temperature(logits: Any) -> None:
    expected = (logits / 0.7).softmax(-1)
    found = draws(logits, temperature=0.7)
    for token in expected.topk(5).indices.tolist():
        assert found[token] / 4000 == pytest.approx(float(expected[token]), abs=0.03)


@pytest.mark.parametrize("top_k", [1, 7, 300])
def test_top_k_keeps_the_k_most_likely(logits: Any, top_k: int) -> None:
    assert set(draws(logits, top_k=top_k)) <= set(logits.topk(top_k).indices.tolist())


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("flat", [1.0, 0.02])
def test_top_p_keeps_the_smallest_set_with_that_mass(logits: Any, top_p: float, flat: float) -> None:
    ordered, tokens = (logits * flat).softmax(-1).sort(descending=True)
    kept = int(((ordered.cumsum(-1) - ordered) < top_p).sum())
    found = draws(logits * flat, top_p=top_p)
    assert set(found) <= set(tokens[:kept].tolist())
    assert len(found) > kept * 0.5


def test_top_k_applies_before_top_p(logits: Any) -> None:
    three = logits.topk(3)
    mass = three.values.softmax(-1)
    kept = int(((mass.cumsum(-1) - mass) < 0.6).sum())
    assert set(draws(logits, top_k=3, top_p=0.6)) == set(three.indices[:kept].tolist())


def test_a_seed_gives_the_same_token_alone_and_in_a_crowd(logits: Any) -> None:
    alone = Sampler().sample(logits.unsqueeze(0), [sequence(seed=42)])[0].token_id
    crowd = [sequence(), sequence(temperature=0.0), sequence(seed=42), sequence(top_p=0.5), sequence(seed=7)]
    rows = torch.stack([logits.roll(3), logits, logits, logits, logits])
    assert Sampler().sample(rows, crowd)[2].token_id == alone


def test_a_seed_gives_other_numbers_at_other_positions(logits: Any) -> None:
    one, tokens = sequence(seed=42, max_tokens=99), []
    for _ in range(20):
        sampled = Sampler().sample(logits.unsqueeze(0), [one])[0]
        one.append(sampled)
        tokens.append(sampled.token_id)
    assert len(set(tokens)) > 3


def test_log_probabilities_are_of_the_unmodified_distribution(logits: Any) -> None:
    sampled = Sampler().sample(logits.expand(2, -1), [sequence(temperature=0.3, top_k=2, logprobs=5), sequence()])
    expected = logits.log_softmax(-1)
    assert sampled[0].logprob == pytest.approx(float(expected[sampled[0].token_id or 0]), abs=1e-5)
    assert [token for token, _ in sampled[0].top] == expected.topk(5).indices.tolist()
    assert [value for _, value in sampled[0].top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-5)
    assert sampled[1].logprob is None


def test_logprobs_zero_names_the_chosen_token_only(logits: Any) -> None:
    sampled = Sampler().sample(logits.unsqueeze(0), [sequence(temperature=0.0, logprobs=0)])[0]
    assert sampled.logprob is not None
    assert sampled.top == ()


def test_a_row_that_is_no_number_spoils_no_other(logits: Any) -> None:
    rows = torch.stack([torch.full_like(logits, float("nan")), logits])
    broken, fine = Sampler().sample(rows, [sequence(temperature=0.5, logprobs=1), sequence(temperature=0.0)])
    assert broken.token_id is None
    assert fine.token_id == int(logits.argmax())
