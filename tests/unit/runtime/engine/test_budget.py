"""Prompt tokens beside running streams: as many as the goal leaves time for."""

from llm_runtime.engine.budget import LEAST_TOKENS, PrefillBudget


def learned(
    decode_seconds: float, token_seconds: float, goal_seconds: float = 0.1, most: int = 512
) -> int:
    budget = PrefillBudget(most, goal_seconds)
    for _ in range(50):
        budget.observe(8, 0, decode_seconds)
        tokens = budget.tokens()
        budget.observe(8, tokens, decode_seconds + tokens * token_seconds)
    return budget.tokens()


def test_the_goal_less_the_decoding_is_spent_on_prompts() -> None:
    assert 95 <= learned(decode_seconds=0.05, token_seconds=0.0005) <= 105


def test_a_fast_machine_takes_all_that_a_step_may_have() -> None:
    assert learned(decode_seconds=0.001, token_seconds=0.00001) == 512


def test_prompts_advance_even_where_decoding_alone_misses_the_goal() -> None:
    assert learned(decode_seconds=0.3, token_seconds=0.001) == LEAST_TOKENS


def test_nothing_known_is_a_careful_start() -> None:
    assert PrefillBudget(512, 0.1).tokens() == 64


def test_prompts_without_anybody_waiting_teach_too() -> None:
    budget = PrefillBudget(512, 0.1)
    budget.observe(0, 100, 0.1)
    assert budget.tokens() == 100


def test_one_slow_step_moves_the_budget_by_a_fifth_at_most() -> None:
    budget = PrefillBudget(10_000, 0.1)
    budget.observe(0, 100, 0.01)
    before = budget.tokens()
    budget.observe(0, 100, 0.02)
    assert before * 0.8 <= budget.tokens() < before
