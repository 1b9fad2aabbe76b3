"""What is asked: the same for everybody, new in each round."""

from bench.adapters import shapes
from bench.models import endless
from bench.process import descendants
from bench.workload import mixed, shared_prefixes, spread_over

WORDS = ["one", "two", "three", "four"]


def test_the_seed_decides_everything() -> None:
    assert mixed(WORDS, 20, seed=1) == mixed(WORDS, 20, seed=1)
    assert mixed(WORDS, 20, seed=1) != mixed(WORDS, 20, seed=2)


def test_lengths_are_what_they_say() -> None:
    for ask in mixed(WORDS, 200, seed=3):
        assert len(ask.prompt.split()) == ask.prompt_tokens
        assert 16 <= ask.prompt_tokens <= 200
        assert 16 <= ask.max_tokens <= 128


def test_a_group_shares_its_prefix_and_no_other_group_does() -> None:
    groups = shared_prefixes(WORDS, groups=2, followers=3, prefix_tokens=50, seed=0)
    prefixes = [{tuple(ask.prompt.split()[:50]) for ask in group} for group in groups]
    assert [len(group) for group in groups] == [4, 4]
    assert [len(found) for found in prefixes] == [1, 1]
    assert prefixes[0] != prefixes[1]
    assert len({ask.prompt for group in groups for ask in group}) == 8


def test_adapters_get_the_same_requests_in_turn() -> None:
    asks = mixed(WORDS, 5, seed=0)
    spread = spread_over(asks, ["m:a", "m:b"])
    assert [ask.model for ask in spread] == ["m:a", "m:b", "m:a", "m:b", "m:a"]
    assert [ask.prompt for ask in spread] == [ask.prompt for ask in asks]


def test_no_setting_of_an_endless_model_knows_an_end() -> None:
    assert endless({"model_type": "llama", "eos_token_id": 2, "pad_token_id": 0}) == {
        "model_type": "llama",
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    assert endless({"eos_token": "<end>", "unk_token": "<unk>"}) == {"unk_token": "<unk>"}


def test_adapters_fit_grouped_query_attention() -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    }
    found = shapes(config)
    assert len(found) == 14
    assert found["model.layers.1.self_attn.k_proj"] == (16, 64)
    assert found["model.layers.0.mlp.down_proj"] == (64, 100)


def test_the_family_of_a_process_holds_grandchildren_and_no_strangers() -> None:
    assert descendants(10, {10: 1, 11: 10, 12: 11, 20: 1, 21: 20}) == [10, 11, 12]
