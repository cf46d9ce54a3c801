"""Figures are checked against hand computation, analytic results or simulation."""

import subprocess
import sys
from math import comb
from typing import Any

import numpy as np
import pytest

from sllm_tune.evaluate.statistics import Difference, Interval, compare, macro_difference, mean_ci95, share_ci95
from sllm_tune.evaluate.verdict import gate, verdict
from sllm_tune.recipe.evaluate import GateSection


def difference(value=0.1, low=0.05, high=0.15, p_value=0.001):
    return Difference(value, (low, high), p_value, "McNemar exact", improved=30, regressed=10)


def width(interval):
    return interval.ci95[1] - interval.ci95[0]


def test_mcnemar_equals_the_binomial_sum_worked_by_hand():
    ours = np.array([1.0] * 10 + [0.0] * 3 + [1.0] * 20)
    theirs = np.array([0.0] * 10 + [1.0] * 3 + [1.0] * 20)
    result = compare(ours, theirs, None, seed=0)
    # 13 discordant items, 3 against: 2 * (C(13,0) + C(13,1) + C(13,2) + C(13,3)) / 2**13 = 756 / 8192
    assert result.p_value == pytest.approx(2 * sum(comb(13, k) for k in range(4)) / 2**13) == pytest.approx(756 / 8192)
    assert (result.test, result.improved, result.regressed) == ("McNemar exact", 10, 3)
    assert result.value == pytest.approx(7 / 33)


def test_interval_of_a_proportion_is_close_to_the_analytic_one():
    interval = mean_ci95(np.array([1.0] * 420 + [0.0] * 280), None, seed=1)
    half = 1.96 * (0.6 * 0.4 / 700) ** 0.5
    assert interval.value == pytest.approx(0.6)
    assert interval.ci95 == pytest.approx((0.6 - half, 0.6 + half), abs=0.002)


def test_interval_of_a_paired_difference_is_close_to_the_analytic_one():
    rng = np.random.default_rng(3)
    theirs = rng.normal(size=800)
    ours = theirs + rng.normal(0.2, 0.5, size=800)
    gap = ours - theirs
    half = 1.96 * gap.std() / 800**0.5
    result = compare(ours, theirs, None, seed=0)
    assert result.test == "paired bootstrap"
    assert result.ci95 == pytest.approx((gap.mean() - half, gap.mean() + half), abs=0.003)


def test_groups_that_answer_alike_widen_the_interval_by_the_root_of_their_size():
    per_group = np.random.default_rng(0).integers(0, 2, size=150).astype(float)
    values, groups = np.repeat(per_group, 9), np.repeat(np.arange(150), 9)
    assert width(mean_ci95(values, groups, 0)) / width(mean_ci95(values, None, 0)) == pytest.approx(3.0, rel=0.05)


def test_groups_of_one_item_give_the_item_interval():
    values = np.random.default_rng(0).normal(size=60)
    assert mean_ci95(values, np.arange(60)[::-1], 5) == mean_ci95(values, None, 5)


def test_groups_of_unequal_size_are_a_ratio_of_sums():
    # 100 groups of three right answers, 100 of one wrong answer. A drawn group changes the number of items too:
    # its residual is 3 - 0.75 * 3 = 0.75 or 0 - 0.75 * 1 = -0.75, so the standard error is 0.75 * sqrt(200) / 400.
    values, groups = np.array([1.0, 1.0, 1.0, 0.0] * 100), np.array([0, 0, 0, 1] * 100) + np.arange(400) // 4 * 2
    interval = mean_ci95(values, groups, 0)
    assert interval.value == 0.75
    assert width(interval) == pytest.approx(2 * 1.96 * 0.75 * 200**0.5 / 400, rel=0.05)


def test_interval_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(200):
        # 60 groups of 4 items that share a level: the standard error is twice what it is for independent items
        levels = np.repeat(rng.random(60) < 0.5, 4)
        low, high = mean_ci95(levels.astype(float), np.repeat(np.arange(60), 4), trial).ci95
        held += low <= 0.5 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_bootstrap_p_value_is_uniform_without_a_difference():
    rng = np.random.default_rng(5)
    p_values = [compare(rng.normal(size=50), rng.normal(size=50), None, trial).p_value for trial in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_bootstrap_p_value_is_never_zero():
    result = compare(np.linspace(2, 3, 40), np.linspace(0, 1, 40), None, seed=0)
    assert result.p_value == pytest.approx(2 / 10_001)


@pytest.mark.parametrize(
    ("scores", "test"), [([0.0, 1.0] * 10, "McNemar exact"), ([0.25, 0.5] * 10, "paired bootstrap")]
)
def test_identical_models_show_no_difference(scores, test):
    result = compare(np.array(scores), np.array(scores), None, seed=0)
    assert result == Difference(0.0, (0.0, 0.0), 1.0, test, improved=0, regressed=0)
    assert verdict(result, {}, {})["outcome"] == "no difference shown"


def test_order_of_items_changes_nothing():
    rng = np.random.default_rng(2)
    ours, theirs, groups = rng.integers(0, 2, 300), rng.integers(0, 2, 300), rng.integers(0, 80, 300)
    shuffled = rng.permutation(300)
    assert compare(ours, theirs, groups, 4) == compare(ours[shuffled], theirs[shuffled], groups[shuffled], 4)


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=100)
    assert mean_ci95(values, None, 7) == mean_ci95(values, None, 7)
    assert mean_ci95(values, None, 7).ci95 != mean_ci95(values, None, 8).ci95


def test_one_task_gives_what_compare_gives():
    rng = np.random.default_rng(9)
    ours, theirs, groups = rng.integers(0, 2, 200), rng.integers(0, 2, 200), np.arange(200) // 2
    assert macro_difference([(ours, theirs, groups)], 3) == compare(ours, theirs, groups, 3)


def test_tasks_weigh_the_same_whatever_their_size():
    small = (np.ones(10), np.zeros(10), None)
    large = (np.zeros(990), np.zeros(990), None)
    result = macro_difference([small, large], seed=0)
    assert (result.value, result.improved, result.regressed) == (0.5, 10, 0)
    assert result.test == "paired bootstrap"


def test_each_task_is_resampled_on_its_own():
    rng = np.random.default_rng(1)
    gaps = [rng.normal(0.0, 1.0, 400), rng.normal(0.3, 2.0, 400)]
    result = macro_difference([(gap, np.zeros(400), None) for gap in gaps], seed=0)
    half = 1.96 * sum(gap.var() / 400 for gap in gaps) ** 0.5 / 2
    assert result.ci95 == pytest.approx((result.value - half, result.value + half), abs=0.006)


def test_verdict_needs_both_the_interval_and_the_test():
    assert verdict(difference(), {}, {})["outcome"] == "better"
    assert verdict(difference(-0.1, -0.15, -0.05), {}, {})["outcome"] == "worse"
    assert verdict(difference(p_value=0.05), {}, {})["outcome"] == "no difference shown"
    assert verdict(difference(-0.1, -0.15, -0.05, p_value=0.06), {}, {})["outcome"] == "no difference shown"
    assert verdict(difference(low=0.0), {}, {})["outcome"] == "no difference shown"


def test_verdict_names_the_controls_that_are_not_beaten():
    controls = {"majority": difference(), "tfidf": difference(low=-0.01), "base_fewshot": difference(p_value=0.2)}
    assert verdict(difference(), controls, {"majority": ["b"]}) == {
        "outcome": "better",
        "gain": {"value": 0.1, "ci95": [0.05, 0.15], "p_value": 0.001},
        "controls_as_good": ["tfidf", "base_fewshot"],
        "not_compared": {"majority": ["b"]},
    }


def judged(
    min_gain: float,
    max_forgetting: float | None,
    gains: dict[str, Interval],
    forgetting: Interval | None,
    language: str = "en",
) -> dict[str, Any]:
    limits = GateSection(min_gain=min_gain, max_forgetting=max_forgetting)
    return gate(limits, gains, {"max_forgetting": forgetting}, language)


def test_gate_passes_on_the_bounds_and_says_so():
    assert judged(0.05, 0.02, {"a": difference()}, Interval(0.004, (-0.01, 0.02))) == {
        "passed": True,
        "reasons": [
            "Gain on a passes: the lower bound of its 95 % interval, 0.050, is at least min_gain 0.05.",
            "Forgetting passes: the upper bound of its 95 % interval, 0.020, is at most max_forgetting 0.02.",
        ],
    }


def test_gate_fails_on_a_bound_though_the_value_is_good():
    assert judged(0.05, 0.02, {"a": Interval(0.14, (0.031, 0.19))}, Interval(0.004, (-0.01, 0.0204))) == {
        "passed": False,
        "reasons": [
            "Gain on a fails: the lower bound of its 95 % interval, 0.031, is below min_gain 0.05.",
            "Forgetting fails: the upper bound of its 95 % interval, 0.0204, is above max_forgetting 0.02.",
        ],
    }


@pytest.mark.parametrize(
    ("low", "high", "verbs"), [(0.06, 0.03, ["passes", "fails"]), (0.04, 0.01, ["fails", "passes"])]
)
def test_gate_fails_when_one_of_the_two_fails(low, high, verbs):
    result = judged(0.05, 0.02, {"a": Interval(0.1, (low, 0.2))}, Interval(0.0, (-0.01, high)))
    assert not result["passed"]
    assert [reason.partition(":")[0].split()[-1] for reason in result["reasons"]] == verbs


@pytest.mark.parametrize("lost", [-0.1, -0.001, 0.0499])
def test_a_loss_on_one_task_is_not_made_up_for_by_another(lost):
    gains = {"clauses": Interval(0.2, (0.15, 0.25)), "summaries": Interval(lost + 0.01, (lost, lost + 0.02))}
    result = judged(0.05, None, gains, None)
    assert not result["passed"]
    assert result["reasons"][0].startswith("Gain on clauses passes:")
    assert result["reasons"][1].startswith("Gain on summaries fails:")


def test_gate_without_a_limit_on_forgetting_judges_the_gain_alone():
    reason = "Gain on a passes: the lower bound of its 95 % interval, 0.000, is at least min_gain -0.01."
    assert judged(-0.01, None, {"a": Interval(0.1, (-0.0001, 0.2))}, None) == {"passed": True, "reasons": [reason]}


def test_gate_gives_its_reasons_in_korean():
    assert judged(0.05, 0.02, {"a": Interval(0.14, (0.031, 0.19))}, Interval(0.004, (-0.01, 0.02)), "ko")[
        "reasons"
    ] == [
        "a 향상 폭 미충족: 95% 신뢰구간의 하한(0.031)이 min_gain(0.05)보다 낮습니다.",
        "망각 충족: 95% 신뢰구간의 상한(0.020)이 max_forgetting(0.02) 이하입니다.",
    ]


def test_gate_looks_at_instructions_and_labels_where_the_recipe_limits_them():
    limits = GateSection(min_gain=0.0, max_instruction_loss=0.1, max_label_collapse=0.05)
    lost = {"max_instruction_loss": Interval(0.03, (-0.02, 0.08)), "max_label_collapse": Interval(0.02, (0.0, 0.07))}
    result = gate(limits, {"a": difference()}, {"max_forgetting": None, **lost})
    assert not result["passed"]
    assert result["reasons"][1:] == [
        "Loss of everyday instructions followed passes: the upper bound of its 95 % interval, 0.080, is at most "
        "max_instruction_loss 0.1.",
        "Label collapse fails: the upper bound of its 95 % interval, 0.070, is above max_label_collapse 0.05.",
    ]
    assert gate(limits, {}, lost, "ko")["reasons"] == [
        "일상 지시 이행 감소 충족: 95% 신뢰구간의 상한(0.080)이 max_instruction_loss(0.1) 이하입니다.",
        "라벨 붕괴 미충족: 95% 신뢰구간의 상한(0.070)이 max_label_collapse(0.05)보다 높습니다.",
    ]


def test_a_share_of_none_or_all_has_an_interval_with_a_width():
    assert share_ci95(0, 97).ci95 == pytest.approx((0, 0.0373), abs=1e-4)
    assert share_ci95(97, 97).ci95 == pytest.approx((0.9627, 1), abs=1e-4)
    assert share_ci95(2, 100).value == 0.02
    assert share_ci95(2, 100).ci95 == pytest.approx((0.0024, 0.0704), abs=1e-4)  # of the tables of Clopper & Pearson
    with pytest.raises(ValueError, match="no item"):
        share_ci95(0, 0)


def test_gate_refuses_a_limit_on_forgetting_that_was_not_measured():
    with pytest.raises(ValueError, match="max_forgetting is set, but what it limits was not measured"):
        judged(0.05, 0.02, {"a": difference()}, None)


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="2 scores against 3"):
        compare(np.zeros(2), np.zeros(3), None, 0)
    with pytest.raises(ValueError, match=r"0 scores in 0 group\(s\)"):
        compare(np.zeros(0), np.zeros(0), None, 0)
    with pytest.raises(ValueError, match=r"5 scores in 1 group\(s\): an interval needs at least two groups"):
        compare(np.ones(5), np.zeros(5), np.zeros(5, dtype=int), 0)
    with pytest.raises(ValueError, match="3 scores, 2 groups"):
        mean_ci95(np.zeros(3), np.zeros(2, dtype=int), 0)
    with pytest.raises(ValueError, match="finite"):
        mean_ci95(np.array([0.0, np.nan]), None, 0)
    with pytest.raises(ValueError, match="no task"):
        macro_difference([], 0)


def test_as_dict_holds_what_results_json_holds():
    assert Interval(0.5, (0.4, 0.6)).as_dict() == {"value": 0.5, "ci95": [0.4, 0.6]}
    assert difference().as_dict() == {
        "value": 0.1, "ci95": [0.05, 0.15], "p_value": 0.001, "test": "McNemar exact", "improved": 30, "regressed": 10,
    }  # fmt: skip


def test_import_does_not_load_torch():
    code = "import sys, sllm_tune.evaluate.statistics, sllm_tune.evaluate.controls; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
