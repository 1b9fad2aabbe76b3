"""What an evaluation makes of records and answers:
order, digest, scores, and the intervals of scores."""

import json
import random

import pytest

from llm_operator.crds.rollout import ScorerSpec
from llm_operator.evaluation import intervals, scorers
from llm_operator.evaluation.records import Record, Unusable, digest, ordered


def record(**expectations: object) -> Record:
    return Record({"question": "How much?"}, expectations)


def test_the_digest_is_of_what_the_records_say_and_of_nothing_else() -> None:
    one = Record({"question": "one", "n": 1}, {"expected_response": "1"})
    two = Record({"question": "two"}, {"expected_response": "2"})
    assert digest([one, two]) == digest(
        [two, Record({"n": 1.0, "question": "one"}, {"expected_response": "1"})]
    )
    assert digest([one, two]) != digest(
        [one, Record({"question": "two"}, {"expected_response": "3"})]
    )


def test_a_sample_is_the_same_for_each_candidate_and_follows_no_order_of_the_dataset() -> None:
    records = [Record({"question": f"{number}"}) for number in range(100)]
    assert ordered(records)[:10] == ordered(reversed(records))[:10]
    assert ordered(records)[:10] != records[:10]


def test_messages_and_a_single_text_can_be_asked() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert Record({"messages": messages}).asked == {"messages": messages}
    assert Record({"question": "Hi"}).asked == {"prompt": "Hi"}


@pytest.mark.parametrize(
    "inputs",
    [{}, {"question": ""}, {"question": 1}, {"question": "Hi", "context": "x"}, {"messages": []}],
)
def test_other_inputs_are_told(inputs: dict[str, object]) -> None:
    with pytest.raises(Unusable, match="write `messages` alone"):
        Record(inputs).asked  # noqa: B018


@pytest.mark.parametrize(
    ("spec", "expectations", "answer", "score"),
    [
        ({"type": "Exact"}, {"expected_response": "42"}, " 42\n", 1),
        ({"type": "Exact"}, {"expected_response": "42"}, "43", 0),
        (
            {"type": "Contains"},
            {"expected_facts": ["Paris", "the  Seine"]},
            "PARIS, on the Seine.",
            1,
        ),
        ({"type": "Contains"}, {"expected_facts": ["Paris", "Lyon"]}, "Paris", 0.5),
        ({"type": "Contains"}, {"expected_response": "paris"}, "It is Paris.", 1),
        ({"type": "Regex", "pattern": "^\\d+$"}, {}, "42", 1),
        ({"type": "Regex"}, {"pattern": "^\\d+$"}, "x", 0),
        ({"type": "JsonSchema", "jsonSchema": '{"required": ["a"]}'}, {}, '{"a": 1}', 1),
        ({"type": "JsonSchema"}, {"json_schema": {"required": ["a"]}}, "{}", 0),
        ({"type": "JsonSchema"}, {"json_schema": {}}, "no JSON", 0),
        ({"type": "Similarity"}, {"expected_response": "the cat sat"}, "The cat ran!", 2 / 3),
        ({"type": "Similarity"}, {"expected_response": "the cat sat"}, "", 0),
        ({"type": "Length", "maxCharacters": 3}, {}, "four", 0),
        ({"type": "Length", "minCharacters": 3}, {}, "four", 1),
        ({"type": "Refusal"}, {"should_refuse": True}, "I'm sorry, but I can't help with that.", 1),
        ({"type": "Refusal"}, {}, "I cannot say.", 0),
        ({"type": "Refusal"}, {}, "Paris.", 1),
        ({"type": "Refusal", "pattern": "(?i)leider"}, {"should_refuse": True}, "Leider nicht.", 1),
    ],
)
def test_scores(
    spec: dict[str, object], expectations: dict[str, object], answer: str, score: float
) -> None:
    assert scorers.score(
        ScorerSpec.model_validate(spec), record(**expectations), answer
    ) == pytest.approx(score)


@pytest.mark.parametrize(
    ("spec", "expectations", "told"),
    [
        ({"type": "Exact"}, {}, "no usable expectation expected_response, which Exact needs"),
        ({"type": "Exact"}, {"expected_response": 42}, "no usable expectation"),
        ({"type": "Contains"}, {"expected_facts": []}, "at least one"),
        ({"type": "Regex"}, {}, "expectation pattern"),
        ({"type": "Regex", "pattern": "(?=x)"}, {}, "not RE2 syntax"),
        ({"type": "JsonSchema"}, {}, "expectation json_schema"),
        ({"type": "JsonSchema", "jsonSchema": "{x"}, {}, "not JSON"),
        ({"type": "JsonSchema"}, {"json_schema": {"$ref": "#"}}, "can't be used"),
        ({"type": "Refusal"}, {"should_refuse": "yes"}, "true or false"),
    ],
)
def test_what_a_scorer_cant_use_is_told_and_is_no_score(
    spec: dict[str, object], expectations: dict[str, object], told: str
) -> None:
    with pytest.raises(Unusable, match=told):
        scorers.score(ScorerSpec.model_validate(spec), record(**expectations), json.dumps({"a": 1}))


def test_a_dear_pattern_takes_linear_time() -> None:
    spec = ScorerSpec(type="Regex", pattern="^(a+)+$")
    assert scorers.score(spec, record(), "a" * 60_000 + "b") == 0


def test_equal_answers_have_an_interval_that_shrinks_with_the_records() -> None:
    """200 ones are [0.964, 1] at all times (confseq 0.0.11);
    for one fixed number of records it may be narrower."""
    assert 0.964 < intervals.lower([1.0] * 200, 0.05) < 1 - 1 / 200
    assert intervals.upper_difference([0.0] * 50, 0.05) == pytest.approx(0.067, abs=0.001)
    assert intervals.upper_difference([0.0] * 200, 0.05) == pytest.approx(0.017, abs=0.001)


def test_a_published_table_of_pairs() -> None:
    """Approval ratings of Agresti 2002, Categorical Data Analysis, 10.1:
    -0.04, interval of 95 % [-0.059, -0.021]."""
    pairs = [-1.0] * 150 + [1.0] * 86 + [0.0] * 1364
    random.Random(1).shuffle(pairs)
    low = intervals.lower_difference(pairs, 0.025)
    high = intervals.upper_difference(pairs, 0.025)
    assert low < sum(pairs) / len(pairs) == -0.04 < high < 0
    assert high - low < 4 / 3 * (0.0587 - 0.0213)


@pytest.mark.parametrize(("share", "records"), [(0.9, 30), (0.9, 200), (0.5, 100), (0.99, 100)])
def test_bounds_are_wrong_as_rarely_as_they_say(share: float, records: int) -> None:
    chance = random.Random(records)
    wrong = 0
    for _ in range(400):
        scores = [float(chance.random() < share) for _ in range(records)]
        wrong += intervals.lower(scores, 0.05) > share
    assert wrong <= 0.05 * 400 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_ten_in_a_hundred_wrong_answers_are_no_bad_luck() -> None:
    pairs = [float(number % 10 == 0) for number in range(200)]
    random.Random(2).shuffle(pairs)
    assert intervals.lower_difference(pairs, 0.005) > 0.02
