"""The log of a start names the steps that took over a second."""

import pytest

from llm_runtime.machine.steps import Steps


def test_slow_steps_are_named_in_their_order_and_runs_of_one_are_added_up() -> None:
    now = 0.0

    def clock() -> float:
        return now

    steps = Steps(clock)
    for name, seconds in (("weights", 2.04), ("check", 0.6), ("tokenizer", 0.9), ("check", 0.5)):
        with steps.step(name):
            now += seconds
    assert list(steps.slow().items()) == [("weights", 2.0), ("check", 1.1)]


def test_a_step_that_fails_took_its_time_all_the_same() -> None:
    times = iter((0.0, 3.0))
    steps = Steps(lambda: next(times))
    with pytest.raises(ValueError, match="broken"), steps.step("weights"):
        raise ValueError("broken")
    assert steps.slow() == {"weights": 3.0}
