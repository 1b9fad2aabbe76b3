"""Choosing tokens: each option against a direct computation."""

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from llm_runtime.compute.logits import sampler  # noqa: E402
from llm_runtime.compute.logits.sampler import Sampler  # noqa: E402
from llm_runtime.engine.sequence import Sampled, Sequence  # noqa: E402
from llm_runtime.request import Constraint, FinishReason  # noqa: E402
from unit.runtime.engine.fakes import sequence  # noqa: E402

VOCABULARY = 500


@pytest.fixture
def logits() -> Any:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def draws(logits: Any, count: int = 4000, **sampling: Any) -> Counter[int]:
    rows: list[Sequence] = [sequence(**sampling) for _ in range(count)]
    return Counter(
        s.token_id
        for s in Sampler(seed=1).sample(logits.expand(count, -1), rows)
        if s.token_id is not None
    )


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
def test_top_p_keeps_the_smallest_set_with_that_mass(
    logits: Any, top_p: float, flat: float
) -> None:
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


@pytest.mark.parametrize("min_p", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("others", [{}, {"top_p": 0.9}, {"top_k": 40}])
def test_min_p_keeps_what_is_likely_beside_the_likeliest(
    logits: Any, min_p: float, others: dict[str, Any]
) -> None:
    likelihoods = logits.softmax(-1)
    kept = (likelihoods >= min_p * likelihoods.max()).nonzero().flatten().tolist()
    found = draws(logits, min_p=min_p, **others)
    assert set(found) <= set(kept)
    assert len(found) > (len(kept) * 0.5 if not others else 0)


class Recorded(Sampler):
    """Keeps what would be drawn from."""

    def sample(self, logits: Any, sequences: list[Sequence]) -> Any:
        samplings = [one.request.sampling for one in sequences]
        scores = sampler._steered(logits.float(), sequences)
        return sampler._filtered(sampler._tempered(scores, samplings), samplings)


def processed(logits: Any, ids: list[int], **options: Any) -> Any:
    """What Transformers' own processors make of one row,
    in the order of its `_get_logits_processor`."""
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    made = [
        (RepetitionPenaltyLogitsProcessor, "repetition_penalty"),
        (TemperatureLogitsWarper, "temperature"),
        (TopKLogitsWarper, "top_k"),
        (TopPLogitsWarper, "top_p"),
        (MinPLogitsWarper, "min_p"),
    ]
    scores = logits.unsqueeze(0)
    for processor, name in made:
        if name in options:
            scores = processor(options[name])(torch.tensor([ids]), scores)
    return scores[0]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"temperature": 1.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.3, "top_p": 0.99, "min_p": 0.001, "repetition_penalty": 2.0},
        {"temperature": 5.0, "top_p": 0.95},
        {"top_k": 300, "top_p": 0.9},
    ],
)
def test_a_row_is_left_as_transformers_leaves_it_whatever_is_beside_it(
    options: dict[str, Any],
) -> None:
    rows = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3
    crowd = [
        sequence(**options),
        sequence(top_k=300),
        *(sequence("aab", **options) for _ in range(4)),
    ]
    for _ in range(20):
        crowd[0].append(Sampled(7))
    found = Recorded().sample(rows, crowd)
    for row, one in enumerate(crowd):
        if row != 1:
            torch.testing.assert_close(
                found[row], processed(rows[row], one.token_ids, **options), rtol=1e-5, atol=1e-5
            )


def test_looking_at_the_likeliest_first_finds_what_sorting_everything_finds() -> None:
    """The flat rows need more than the first look."""
    rows = torch.randn(40, 3000, generator=torch.Generator().manual_seed(5)) * torch.linspace(
        0.1, 6, 40
    ).unsqueeze(1)
    options: list[dict[str, Any]] = [
        {"top_p": 0.9},
        {"top_k": 200, "top_p": 0.8},
        {"min_p": 0.05},
        {"top_p": 0.99, "min_p": 0.2},
        {"top_k": 9},
    ]
    samplings = [sequence(**options[row % 5]).request.sampling for row in range(40)]
    expected = sampler._filtered(rows.clone(), samplings)
    found = sampler._filtered(rows.clone(), samplings, (3000,))
    differing = (found != expected).any(-1).nonzero().flatten().tolist()
    assert differing == []
    assert 1 <= int((found > -1e9).sum(-1).min()) < 128 < int((found > -1e9).sum(-1).max())


def test_presence_and_frequency_follow_openais_formula_over_the_answer_alone(logits: Any) -> None:
    """mu[j] -> mu[j] - c[j] * frequency_penalty - float(c[j] > 0)
    * presence_penalty (OpenAI's API reference)."""
    one = sequence("abc", max_tokens=99, presence_penalty=0.5, frequency_penalty=-0.25)
    answer = [5, 5, 9, 5, ord("a")]
    for token in answer:
        one.append(Sampled(token))
    counts = torch.bincount(torch.tensor(answer), minlength=VOCABULARY)
    expected = logits - counts * -0.25 - (counts > 0) * 0.5
    torch.testing.assert_close(Recorded().sample(logits.unsqueeze(0), [one])[0], expected)


def test_bias_is_added_before_the_penalties_and_moves_greedy_rows_too(logits: Any) -> None:
    one = sequence("a", logit_bias=((ord("a"), 100.0), (3, -100.0)), repetition_penalty=2.0)
    found = Recorded().sample(logits.unsqueeze(0), [one])[0]
    assert float(found[ord("a")]) == pytest.approx((float(logits[ord("a")]) + 100) / 2)
    assert float(found[3]) == pytest.approx(float(logits[3]) - 100)
    [greedy] = Sampler().sample(
        logits.unsqueeze(0), [sequence(temperature=0.0, logit_bias=((3, 100.0),))]
    )
    assert greedy.token_id == 3


def test_biases_of_several_rows_stay_with_their_rows(logits: Any) -> None:
    crowd = [
        sequence(logit_bias=((3, 1.0),)),
        sequence(),
        sequence(logit_bias=((3, -2.0), (4, 0.5))),
    ]
    added = Recorded().sample(logits.repeat(3, 1), crowd) - logits
    assert {
        (row, token): round(float(added[row, token]), 4)
        for row, token in added.abs().gt(1e-4).nonzero().tolist()
    } == {
        (0, 3): 1.0,
        (2, 3): -2.0,
        (2, 4): 0.5,
    }


def test_the_callers_logits_are_left_alone(logits: Any) -> None:
    rows = logits.repeat(4, 1)
    crowd = [
        sequence("ab", repetition_penalty=2.0, top_k=2),
        sequence(logit_bias=((3, 50.0),), min_p=0.5),
        sequence(constraint=Constraint("regex", "ab"), logprobs=1),
        sequence(temperature=0.5),
    ]
    Sampler().sample(rows, crowd)
    assert torch.equal(rows, logits.repeat(4, 1))


def test_a_constraint_binds_greedy_and_drawn_rows_and_no_neighbour(logits: Any) -> None:
    rows = logits.repeat(4, 1)
    bound: dict[str, Any] = {"constraint": Constraint("regex", "ab")}
    crowd = [
        sequence(temperature=0.0),
        sequence(temperature=0.0, **bound),
        sequence(**bound),
        sequence(top_k=3, **bound),
    ]
    found = [sampled.token_id for sampled in Sampler().sample(rows, crowd)]
    assert found == [int(logits.argmax()), ord("a"), ord("a"), ord("a")]


def test_a_constraint_that_allows_nothing_ends_its_own_row_only(logits: Any) -> None:
    stuck = sequence(constraint=Constraint("regex", "ab"))
    stuck.matcher = Stuck()
    rows = logits.repeat(2, 1)
    broken, fine = Sampler().sample(rows, [stuck, sequence(temperature=0.0)])
    assert (broken.token_id, fine.token_id) == (None, int(logits.argmax()))
    event = stuck.append(broken)
    assert (event.finish_reason, event.error) == (FinishReason.ERROR, "too much")


class Stuck:
    complete = False
    fault = "too much"

    def mask(self) -> bytes:
        return b""

    def advance(self, token_id: int) -> None:
        raise AssertionError(token_id)


def test_a_batch_of_plain_greedy_rows_is_one_look_at_the_logits(logits: Any) -> None:
    rows = logits.repeat(3, 1)
    assert sampler._steered(rows, [sequence(temperature=0.0) for _ in range(3)]) is rows


@pytest.mark.parametrize("size", [3, 256, 257, 500, 1024])
def test_drawing_in_two_steps_is_drawing(size: int) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    count = 20_000
    found = torch.bincount(
        sampler._draw(logits.repeat(count, 1), [n << 17 for n in range(count)]), minlength=size
    )
    expected = logits.softmax(-1) * count
    often = expected > 10
    square = float(((found - expected)[often] ** 2 / expected[often]).sum())
    freedom = int(often.sum())
    assert square < freedom + 5 * (2 * freedom) ** 0.5


def test_noise_is_the_same_on_every_machine() -> None:
    expected = [[2.0868437, 0.1738501], [2.1882448, 2.3918462]]
    for found, row in zip(sampler.gumbel([0, 2**64 - 1], 2).tolist(), expected, strict=True):
        assert found == pytest.approx(row, abs=1e-5)


def test_a_seeded_choice_survives_noise_in_the_last_bits() -> None:
    """Between batch shapes logits differ by so much."""
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4096, generator=chance) * 2
    noisy = rows * (1 + 1e-6 * torch.randn(rows.shape, generator=chance))
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.02}):
        crowd = [sequence(seed=number, **options) for number in range(500)]
        assert Sampler().sample(rows, crowd) == Sampler().sample(noisy, crowd)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.9},
        {"top_k": 7, "min_p": 0.01},
        {
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.4,
            "presence_penalty": 0.1,
            "logit_bias": ((4, 2.0),),
        },
    ],
)
def test_a_seeded_text_is_the_same_alone_and_in_a_changing_crowd(
    logits: Any, options: dict[str, Any]
) -> None:
    def text(crowded: bool) -> list[int]:
        one = sequence(seed=42, max_tokens=99, **options)
        for step in range(30):
            others = [
                sequence("xy", top_k=step),
                sequence(temperature=0.0),
                sequence(min_p=0.2, presence_penalty=1.0),
            ]
            crowd = [*others[: step % 4], one] if crowded else [one]
            rows = torch.stack([logits.roll(step)] * len(crowd))
            one.append(Sampler().sample(rows, crowd)[-1])
        return one.token_ids

    assert text(crowded=True) == text(crowded=False)


def test_a_seed_gives_the_same_token_alone_and_in_a_crowd(logits: Any) -> None:
    alone = Sampler().sample(logits.unsqueeze(0), [sequence(seed=42)])[0].token_id
    crowd = [
        sequence(),
        sequence(temperature=0.0),
        sequence(seed=42),
        sequence(top_p=0.5),
        sequence(seed=7),
    ]
    rows = torch.stack([logits.roll(3), logits, logits, logits, logits])
    assert Sampler().sample(rows, crowd)[2].token_id == alone


def test_a_seed_gives_other_numbers_at_other_positions(logits: Any) -> None:
    one = sequence(seed=42, max_tokens=99)
    tokens = []
    for _ in range(20):
        sampled = Sampler().sample(logits.unsqueeze(0), [one])[0]
        one.append(sampled)
        tokens.append(sampled.token_id)
    assert len(set(tokens)) > 3


def test_log_probabilities_are_of_the_unmodified_distribution(logits: Any) -> None:
    sampled = Sampler().sample(
        logits.expand(2, -1), [sequence(temperature=0.3, top_k=2, logprobs=5), sequence()]
    )
    expected = logits.log_softmax(-1)
    assert sampled[0].logprob == pytest.approx(float(expected[sampled[0].token_id or 0]), abs=1e-5)
    assert [token for token, _ in sampled[0].top] == expected.topk(5).indices.tolist()
    assert [value for _, value in sampled[0].top] == pytest.approx(
        expected.topk(5).values.tolist(), abs=1e-5
    )
    assert sampled[1].logprob is None


def test_logprobs_zero_names_the_chosen_token_only(logits: Any) -> None:
    sampled = Sampler().sample(logits.unsqueeze(0), [sequence(temperature=0.0, logprobs=0)])[0]
    assert sampled.logprob is not None
    assert sampled.top == ()


def test_a_row_that_is_no_number_spoils_no_other(logits: Any) -> None:
    rows = torch.stack([torch.full_like(logits, float("nan")), logits])
    broken, fine = Sampler().sample(
        rows, [sequence(temperature=0.5, logprobs=1), sequence(temperature=0.0)]
    )
    assert broken.token_id is None
    assert fine.token_id == int(logits.argmax())
