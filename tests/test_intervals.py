"""Intervals: known answers, symmetries, how often they include the truth (long run: bench/verdict_calibration.py)."""

import math

import pytest

from eval.compare.intervals import (
    difference_interval,
    holm,
    p_above,
    share_interval,
    smallest_target,
    spread_of,
    wilson,
)

np = pytest.importorskip("numpy")
pytest.importorskip("scipy")


def arm(mean, seeds=3, spread=0.2, seed=0, questions=50):
    rng = np.random.default_rng(seed)
    logits = math.log(mean / (1 - mean)) + rng.normal(0, 0.3, questions) + rng.normal(0, spread, (seeds, 1))
    return 1 / (1 + np.exp(-(logits + rng.normal(0, 0.1, (seeds, questions)))))


def test_the_variances_are_those_of_the_two_way_layout():
    shares = np.array([[0.1, 0.2, 0.3], [0.3, 0.4, 0.5]])  # additive: nothing is left over
    spread = spread_of(shares)
    assert spread.share == pytest.approx(0.3) and spread.residual == pytest.approx(0.0)
    assert spread.seed_variance == pytest.approx(0.02 / 2) and spread.question_variance == pytest.approx(0.01 / 3)


def test_a_share_stays_between_0_and_1_and_includes_the_mean():
    for mean in (0.001, 0.5, 0.999):
        shares = arm(mean, spread=1.0)
        low, high = share_interval(spread_of(shares))
        assert 0 < low < shares.mean() < high < 1


def test_one_seed_gives_the_interval_over_questions():
    shares = arm(0.5, seeds=1)
    low, high = share_interval(spread_of(shares))
    half = 2.0096 * shares.std(ddof=1) / math.sqrt(50)  # t quantile of 49 degrees of freedom
    assert high - low == pytest.approx(2 * half, rel=0.02)


def test_questions_that_move_both_arms_alike_do_not_widen_their_difference():
    by_question = np.linspace(0.1, 0.5, 50)
    a, b = by_question + 0.1, by_question.copy()
    low, high = difference_interval(spread_of(a[np.newaxis]), spread_of(b[np.newaxis]))
    assert low < 0.1 < high and high - low < 0.03  # unpaired it would be 0.07


@pytest.mark.parametrize("seeds_of_other", [1, 3])
def test_margins_of_questions_far_apart_and_seeds_close_together_include_the_truth(seeds_of_other):
    rng = np.random.default_rng(1)

    def arm(by_question, seeds):
        between = rng.normal(0, 0.1, (seeds, 1)) if seeds > 1 else 0.0
        return spread_of(by_question + between + rng.normal(0, 0.1, (seeds, 50)), linear=True)

    missed = 0
    for _ in range(400):
        by_question = rng.normal(0, 2, 50)
        low, high = difference_interval(arm(by_question, 3), arm(by_question, seeds_of_other))
        missed += not low <= 0 <= high
    assert missed <= 32  # 20 are 5%


def test_a_higher_level_is_never_narrower():
    rng = np.random.default_rng(2)
    by_question = rng.normal(0, 1, 50)
    a, b = (spread_of(by_question + rng.normal(0, 0.2, (3, 50)), linear=True) for _ in range(2))
    lows = [difference_interval(a, b, level)[0] for level in (0.5, 0.9, 0.99, 0.999, 0.9999)]
    assert lows == sorted(lows, reverse=True)


def test_swapping_the_arms_mirrors_the_difference():
    a, b = spread_of(arm(0.2)), spread_of(arm(0.05, seed=1))
    low, high = difference_interval(a, b)
    assert difference_interval(b, a) == pytest.approx((-high, -low))


def test_uncovered_mass_widens_the_end_it_could_move():
    shares = arm(0.2)
    closed, target, other = spread_of(shares), spread_of(shares, uncovered=0.1), spread_of(arm(0.05, seed=1))
    low, high = difference_interval(closed, other)
    assert difference_interval(target, other) == pytest.approx((low, high + 0.1))
    assert difference_interval(other, target) == pytest.approx((-high - 0.1, -low))


def test_the_p_value_is_where_the_interval_begins_to_include_zero():
    a, b = spread_of(arm(0.05, seeds=5, spread=0.4)), spread_of(arm(0.02, seeds=5, spread=0.4, seed=1))
    p = p_above(a, b)
    assert 0 < p < 1
    assert difference_interval(a, b, 1 - p * 1.01)[0] > 0 > difference_interval(a, b, 1 - p * 0.99)[0]
    assert p_above(b, a) == 1.0


@pytest.mark.parametrize(("count", "answers"), [(0, 1000), (3, 40), (500, 1000), (40, 40)])
def test_wilsons_interval_is_scipys(count, answers):
    from scipy import stats

    assert wilson(count, answers) == pytest.approx(
        tuple(stats.binomtest(count, answers).proportion_ci(method="wilson"))
    )


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_smallest_margin_is_found_with_the_promised_probability():
    """Draw experiments with a true margin of that size: four in five should show it."""
    rng = np.random.default_rng(0)

    def draw(mean, seeds):
        values = mean + rng.normal(0, 0.02, (seeds, 1)) + rng.normal(0, 0.03, (seeds, 50))
        return spread_of(values, linear=True)

    size = float(np.mean([smallest_target(draw(0.3, 40), [draw(0.3, 40)], 5) for _ in range(5)]))
    shown = sum(difference_interval(draw(size, 5), draw(0.3, 5))[0] > 0 for _ in range(400))
    assert 0.72 < shown / 400 < 0.92


def test_more_answers_need_a_smaller_share_and_exact_ones_the_smallest():
    rng = np.random.default_rng(0)
    shares = arm(0.05, seeds=5, spread=0.3), arm(0.02, seeds=5, spread=0.3, seed=1)
    exact = [spread_of(some) for some in shares]
    sampled = [spread_of(rng.binomial(200, some) / 200, answers=200 * some.size) for some in shares]
    for target, other in (exact, sampled):
        needed = [smallest_target(target, [other], 5, answers) for answers in (None, 400, 50, 10)]
        assert needed == sorted(needed)
    assert smallest_target(sampled[0], [sampled[1]], 5) == pytest.approx(smallest_target(exact[0], [exact[1]], 5), 0.1)


def test_a_target_that_was_never_named_has_no_power():
    assert smallest_target(spread_of(np.zeros((3, 50)), 1500), [spread_of(arm(0.05))], 5) is None


def test_seeds_that_tie_still_have_the_noise_of_their_answers():
    tied = np.zeros((3, 50))
    tied[:, 7] = 0.01  # one of 100 answers, by each seed
    low, high = share_interval(spread_of(tied, answers=15_000))
    exact = wilson(3, 15_000)
    assert low < exact[0] * 1.2 and high > exact[1] * 0.8


@pytest.mark.slow
@pytest.mark.parametrize("answers", [None, 100])
def test_the_smallest_share_is_called_transfer_with_about_the_promised_probability(answers):
    """Three arms have to be cleared at once and the scale is curved, so that 80% is 65 to 90%."""
    from bench.verdict_calibration import BASE, CONTROL, OTHER, TRUTHS, draw_arm, spread_with_answers, true_share

    rng, seeds = np.random.default_rng(5), 5
    below, scatter = {"base": BASE, "control": CONTROL, "other": OTHER}, TRUTHS["small"][1]

    def draw(count, target):
        by_question = rng.normal(0, 0.4, 50)
        arms = [
            draw_arm(rng, some, by_question, 1 if role == "base" else count, answers) for role, some in below.items()
        ]
        target = draw_arm(rng, target, by_question, count, answers)
        return spread_with_answers(target, answers), [spread_with_answers(some, answers) for some in arms]

    needed = float(np.median([smallest_target(*draw(60, scatter), seeds, answers) for _ in range(10)]))
    shift = min(np.arange(0.3, 2.5, 0.02), key=lambda one: abs(true_share((one, *scatter[1:])) - needed))
    called = 0
    for _ in range(300):
        target, arms = draw(seeds, (shift, *scatter[1:]))
        called += all(difference_interval(target, other)[0] > 0 for other in arms)
    assert 0.65 < called / 300 < 0.92


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_no_effect_is_called_one_in_fewer_than_5_of_100_and_intervals_include_the_truth(seeds):
    """A short run of bench/verdict_calibration.py; 300 experiments know a coverage to about 1.3 points."""
    from bench.verdict_calibration import simulate

    none, large = (simulate(truth, seeds, None, 300, 7) for truth in ("no effect", "large"))
    assert none["called"] <= 0.05 and large["called"] >= 0.9
    for coverage in (*none["coverage"].values(), *large["coverage"].values()):
        assert 0.90 <= coverage <= 0.99
