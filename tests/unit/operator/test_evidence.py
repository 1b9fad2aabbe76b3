"""The gates' statistics: exact where they can be,
by simulation where they promise a probability."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from math import comb, e, inf, log

import pytest

from llm_operator.plans.evidence import (
    Buckets,
    Counts,
    ErrorTrial,
    LatencyTrial,
    MeanTrial,
    MemoryTrial,
    Rules,
    clumps,
    odds,
)

BOUNDS = (*(0.01 * 1.05**step for step in range(120)), inf)


def counted(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> Buckets:
    return Buckets.of({bound: float(sum(value <= bound for value in values)) for bound in bounds})


def binomial(n: int, share: float) -> list[float]:
    return [comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_evidence_is_one_on_average_while_the_share_is_as_said(share: float) -> None:
    for grid in (odds.MORE, odds.LESS):
        mean = sum(
            chance * e ** odds.evidence(grid, count, 40, share)
            for count, chance in enumerate(binomial(40, share))
        )
        assert mean == pytest.approx(1, rel=1e-6)


def test_the_evidence_is_at_most_one_on_average_for_bad_requests_shared_out_without_replacement() -> (
    None
):
    """Hoeffding's theorem: 12 bad ones among 10 requests of the candidate and 30 of stable."""
    own = 10
    other = 30
    bad = 12
    ways = {k: comb(own, k) * comb(other, bad - k) / comb(own + other, bad) for k in range(own + 1)}
    for grid in (odds.MORE, odds.LESS):
        mean = sum(
            way * e ** odds.evidence(grid, k, bad, own / (own + other)) for k, way in ways.items()
        )
        assert mean <= 1


def test_an_interval_holds_at_every_look_at_once() -> None:
    """300 sequences of 500 requests, looked at 50 times:
    the true rate leaves the interval in at most 5 + 5 %."""
    chance = random.Random(1)
    missed = 0
    share = 0.05
    for _ in range(300):
        bad = 0
        out = False
        for n in range(1, 501):
            bad += chance.random() < share
            if n % 10 == 0:
                over = odds.evidence(odds.MORE, bad, n, share) >= log(20)
                out = out or over or odds.evidence(odds.LESS, bad, n, share) >= log(20)
        missed += out
    # A fifth of what is promised at least: it is not held by being wide.
    assert 6 <= missed <= 30


def test_an_interval_gets_narrower_and_holds_the_measured_share() -> None:
    ends = [
        (odds.low(n * 0.02, n, 0.01), odds.high(n * 0.02, n, 0.05)) for n in (50, 500, 5000, 50_000)
    ]
    assert all(low <= 0.02 <= high for low, high in ends)
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(ends))
    assert ends[-1][0] > 0.0175
    assert ends[-1][1] < 0.0225
    # `bernoulli_confidence_interval` of confseq 0.0.11, 5 %: [0, 0.588] and [0.982, 1].
    assert odds.low(0, 10, 0.05) == 0
    assert 0.3 < odds.high(0, 10, 0.05) < 0.588
    assert 0.97 < odds.low(200, 200, 0.05) < 1
    assert (odds.high(200, 200, 0.05), odds.high(0, 0, 0.05)) == (1, 1)


def test_independent_requests_are_no_clumps_and_five_in_a_row_are() -> None:
    chance = random.Random(2)
    alone = clumps.Clumps()
    five = clumps.Clumps()
    for _ in range(2000):
        alone.add(sum(chance.random() < 0.05 for _ in range(20)), 20, 20)
        five.add(5 * sum(chance.random() < 0.01 for _ in range(20)), 20, 20)
    assert len(alone.excess) <= clumps.MOST_BLOCKS
    assert alone.factor(0.05 * 0.95) < 2
    assert 3 < five.factor(0.05 * 0.95) < 12


def run(trial: ErrorTrial, *looks: tuple[Counts, Counts]) -> str:
    for own, stable in looks:
        trial.look(own, stable)
    return trial.state()[0]


RULES = Rules()


def test_many_errors_of_the_candidate_fail_and_few_pass() -> None:
    fine = Counts(100, 0)
    broken = Counts(10, 10)
    assert run(ErrorTrial(0.01, RULES), *[(broken, fine)] * 4) == "Inconclusive"
    assert run(ErrorTrial(0.01, RULES), *[(broken, fine)] * 5) == "Failed"
    assert run(ErrorTrial(0.01, RULES), *[(fine, fine)] * 5) == "Passed"
    assert run(ErrorTrial(0.01, RULES), *[(Counts(100, 2), fine)] * 2) == "Inconclusive"


def test_errors_that_stable_has_too_are_not_the_candidates_fault() -> None:
    trial = ErrorTrial(0.01, RULES)
    assert run(trial, *[(Counts(10, 10), Counts(90, 90))] * 50) == "Inconclusive"
    assert "stable had 4500 of 4500" in trial.state()[1]
    # An incident while the candidate has more of the traffic than usual:
    # its average is worse, it is not.
    incident = [(Counts(90, 45), Counts(10, 5))] * 20
    assert (
        run(ErrorTrial(0.01, RULES), *[(Counts(10, 0), Counts(90, 0))] * 20, *incident)
        == "Inconclusive"
    )


def test_without_enough_requests_of_stable_the_threshold_alone_decides() -> None:
    assert run(ErrorTrial(0.01, RULES), *[(Counts(10, 5), Counts())] * 10) == "Failed"
    assert run(ErrorTrial(0.01, RULES), *[(Counts(10, 5), Counts(1, 0))] * 10) == "Failed"
    # As far as they go, they are as bad.
    assert run(ErrorTrial(0.01, RULES), *[(Counts(10, 10), Counts(1, 1))] * 10) == "Inconclusive"


def test_after_the_switch_stables_errors_of_before_are_what_is_usual() -> None:
    for before, expected in ((Counts(500, 0), "Failed"), (Counts(500, 250), "Inconclusive")):
        trial = ErrorTrial(0.01, RULES, switched=True)
        trial.before(before)
        assert run(trial, *[(Counts(10, 3), Counts())] * 20) == expected


def test_no_errors_allowed_is_judged_too() -> None:
    assert run(ErrorTrial(0, RULES), *[(Counts(100, 0), Counts(100, 0))] * 10) == "Passed"
    assert run(ErrorTrial(0, RULES), *[(Counts(100, 5), Counts(100, 0))] * 20) == "Failed"


def test_no_requests_is_a_state_of_its_own() -> None:
    found = ErrorTrial(0.01, RULES).answer()
    assert (found.state, found.estimate, found.low, found.high) == (
        "Inconclusive",
        None,
        None,
        None,
    )
    assert (
        LatencyTrial(1.3, RULES).answer().message
        == "too few samples to judge: candidate 0, stable 0, 50 are needed"
    )


def judged(
    slower: float, *, switched: bool = False, looks: int = 150, bounds: tuple[float, ...] = BOUNDS
) -> LatencyTrial:
    """3 requests of the candidate and 12 of stable a look; both get slower for a while."""
    chance = random.Random(3)
    trial = LatencyTrial(1.3, RULES, switched=switched)
    for _ in range(looks // 3 if switched else 3):
        trial.before(counted([chance.lognormvariate(-1, 0.5) for _ in range(12)], bounds))
    for look in range(looks):
        busy = 3.0 if look % 20 > 15 and not switched else 1.0
        own = [busy * slower * chance.lognormvariate(-1, 0.5) for _ in range(3)]
        stable = [busy * chance.lognormvariate(-1, 0.5) for _ in range(12)]
        trial.look(counted(own, bounds), counted(stable, bounds))
        if trial.state()[0] == "Failed":
            break
    return trial


@pytest.mark.parametrize("switched", [False, True])
def test_twice_the_latency_fails_and_the_same_passes(switched: bool) -> None:
    found = judged(2, switched=switched).answer()
    assert found.state == "Failed"
    assert found.samples < 250
    assert found.low is not None
    assert found.low >= 1.3
    found = judged(1, switched=switched).answer()
    assert found.state == "Passed"
    assert found.low is not None
    assert found.estimate is not None
    assert found.high is not None
    assert found.low < found.estimate < found.high <= 1.951
    assert 0.7 < found.estimate < 1.3


def test_coarse_buckets_give_a_wider_interval_not_a_wrong_one() -> None:
    coarse = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, inf)
    rough = judged(1, bounds=coarse).answer()
    fine = judged(1).answer()
    assert rough.state != "Failed"
    assert (rough.low or 0) <= (fine.low or 0)
    assert (rough.high or inf) >= (fine.high or inf)


def test_buckets_of_two_runtimes_are_compared_by_the_bounds_that_each_has() -> None:
    old = (0.1, 0.5, 1, inf)
    new = BOUNDS
    values = [0.2, 0.3, 0.7, 3.0]
    assert counted(values, old).surely_beyond(0.6) == 1
    assert counted(values, old).maybe_beyond(0.6) == 2
    assert counted(values, new).surely_beyond(0.6) == counted(values, new).maybe_beyond(0.6) == 2
    both = counted(values, old) + counted(values, new)
    assert (both.samples, both.bounds) == (8, (inf,))
    assert (Buckets() + counted(values)).samples == 4


def test_the_95th_percentile_is_looked_for_where_there_are_samples_on_both_sides() -> None:
    assert Buckets.of({0.1: 0.0, 0.2: 90.0, 0.4: 94.0, 0.8: 99.0, inf: 100.0}).near(0.95) == 0.4
    assert Buckets.of({0.1: 0.0, 0.2: 100.0, inf: 100.0}).near(0.95) == 0.2
    assert Buckets.of({0.1: 0.0, 0.2: 0.0, inf: 100.0}).near(0.95) == 0.2
    assert Buckets.of({0.1: 100.0, 0.2: 100.0, inf: 100.0}).near(0.95) == 0.1


def test_equal_versions_stay_in_play_however_often_one_looks() -> None:
    """100 roll-outs of 200 looks each at the allowed limit itself, the hardest:
    at most a handful fail at 1 %."""
    failed = 0
    for seed in range(100):
        chance = random.Random(seed)
        trial = ErrorTrial(0.05, RULES)
        for _ in range(200):
            own = Counts(5, sum(chance.random() < 0.05 for _ in range(5)))
            trial.look(own, Counts(20, sum(chance.random() < 0.02 for _ in range(20))))
            if trial.state()[0] == "Failed":
                failed += 1
                break
    assert failed <= 3


TOKENS = (
    *map(float, range(1, 21)),
    *(float(round(20 * 1.05**step)) for step in range(1, 150)),
    inf,
)


def answers(chance: random.Random, count: int, times: float = 1.0) -> Buckets:
    return counted([max(1.0, times * chance.lognormvariate(4, 0.8)) for _ in range(count)], TOKENS)


def ended(
    trial: MeanTrial, looks: int, own: Callable[[int], Buckets], stable: Callable[[int], Buckets]
) -> str:
    """The state at the first look that fails, or at the end."""
    for look in range(looks):
        trial.look(own(look), stable(look))
        if look % 5 == 4 and trial.state()[0] == "Failed":
            return f"Failed after {trial.samples:.0f}"
    return trial.state()[0]


def test_equal_versions_talk_as_long_and_one_that_talks_three_times_as_long_fails() -> None:
    chance = random.Random(3)
    equal = [
        ended(
            MeanTrial(1.5, RULES), 100, lambda _: answers(chance, 3), lambda _: answers(chance, 9)
        )
        for _ in range(30)
    ]
    assert not any(state.startswith("Failed") for state in equal)
    assert equal.count("Passed") >= 28
    long = [
        ended(
            MeanTrial(1.5, RULES),
            100,
            lambda _: answers(chance, 3, 3),
            lambda _: answers(chance, 9),
        )
        for _ in range(30)
    ]
    assert all(state.startswith("Failed") for state in long)


def test_the_interval_of_a_ratio_of_means_holds_the_true_ratio() -> None:
    chance = random.Random(4)
    trial = MeanTrial(1.5, RULES)
    for _ in range(200):
        trial.look(answers(chance, 5, 1.2), answers(chance, 20))
    said = trial.answer()
    assert said.low is not None
    assert said.high is not None
    assert 0.9 < said.low < 1.2 < said.high < 1.5
    assert said.estimate == pytest.approx(1.2, rel=0.1)


def test_after_a_switch_answers_are_compared_with_those_before_it() -> None:
    for times, state in ((1.0, "Passed"), (3.0, "Failed")):
        chance = random.Random(5)
        trial = MeanTrial(1.5, RULES, switched=True)
        trial.before(answers(chance, 500))
        for _ in range(40):
            trial.look(answers(chance, 10, times), Buckets())
        assert trial.state()[0] == state


def test_answers_in_slow_changes_of_both_sides_fail_nobody() -> None:
    """Both sides answer five times as long in the second half,
    when the candidate has most of the traffic."""
    chance = random.Random(6)
    trial = MeanTrial(1.5, RULES)
    for look in range(200):
        late = look >= 100
        own, stable = (9, 1) if late else (1, 9)
        trial.look(
            answers(chance, own, 5 if late else 1), answers(chance, stable, 5 if late else 1)
        )
        assert trial.state()[0] != "Failed"


def test_memory_is_judged_once_the_candidate_has_answered_and_several_looks_agree() -> None:
    trial = MemoryTrial(1.2, RULES)
    for _ in range(10):
        trial.look(900.0, 500.0, 3, 1000)
    assert "too few answers" in trial.answer().message
    states = []
    for own in (900.0, 900.0, 500.0, 900.0, 900.0, 900.0, 900.0, 900.0):
        trial.look(own, 500.0, 60, 1000)
        states.append(trial.answer().state)
    assert states == ["Inconclusive"] * 7 + ["Failed"]
    for _ in range(5):
        trial.look(550.0, 500.0, 60, 1000)
    assert trial.answer().state == "Passed"
