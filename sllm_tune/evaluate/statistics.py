"""Intervals and paired differences: pure functions of per-item scores.

Sources:
    McNemar 1947, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12.
    Efron & Tibshirani 1993, "An Introduction to the Bootstrap": percentile interval (ch. 13), p-value (ch. 15).
    Cameron, Gelbach & Miller 2008, "Bootstrap-based improvements for inference with clustered errors", REStat 90.
    Miller 2024, "Adding error bars to evals", arXiv:2411.00640: paired differences, clustered items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sllm_tune.evaluate.plain import FigureDict, PairedDict

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ScorePair = tuple[FloatArray, FloatArray, IntArray | None]
"""Our scores, their scores on the same items, and each item's group (None: items are independent)."""

RESAMPLES = 10_000
SIGNIFICANCE = 0.05
DRAWS_AT_ONCE = 1_000_000  # bounds memory to about 20 MB whatever the number of items


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, in the unit of the scores."""

    value: float
    ci95: tuple[float, float]

    def as_dict(self) -> FigureDict:
        """The fields as results.json holds them; the interval is a list."""
        return {"value": self.value, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of ours minus theirs on the same items; positive means that ours scores higher.

    `improved` and `regressed` count the items on which ours scores higher and lower.
    """

    p_value: float
    test: str
    improved: int
    regressed: int

    def as_dict(self) -> PairedDict:
        """The fields as results.json holds them; the interval is a list."""
        return {
            **super().as_dict(),
            "p_value": self.p_value,
            "test": self.test,
            "improved": self.improved,
            "regressed": self.regressed,
        }

    @property
    def shown_positive(self) -> bool:
        """Both the interval and the test say that ours is higher."""
        return self.ci95[0] > 0 and self.p_value < SIGNIFICANCE

    @property
    def shown_negative(self) -> bool:
        """Both the interval and the test say that ours is lower."""
        return self.ci95[1] < 0 and self.p_value < SIGNIFICANCE


def mean_ci95(values: FloatArray, groups: IntArray | None, seed: int) -> Interval:
    """Mean with its 95 % percentile bootstrap interval.

    With `groups`, whole groups are drawn (cluster bootstrap), because items that share a question are not independent.
    The interval has no width when every group (or item) scores the same, whatever their number.

    Raises:
        ValueError: fewer than two items or groups, a score that is not finite, or lengths that differ.

    Source: Efron & Tibshirani 1993, ch. 13; Cameron, Gelbach & Miller 2008 (pairs cluster bootstrap).
    """
    means = _bootstrap_means(values, groups, np.random.default_rng(seed))
    return Interval(float(np.mean(values)), _percentiles(means))


def share_ci95(hits: int, n: int) -> Interval:
    """A share of items with its exact 95 % interval, which has a width where none or all of them are hits.

    Raises:
        ValueError: no item.

    Source: Clopper & Pearson 1934, Biometrika 26.
    """
    from scipy.stats import binomtest

    if n < 1:
        raise ValueError("no item to take a share of")
    found = binomtest(hits, n).proportion_ci(0.95, "exact")
    return Interval(hits / n, (float(found.low), float(found.high)))


def compare(ours: FloatArray, theirs: FloatArray, groups: IntArray | None, seed: int) -> Difference:
    """Paired difference of two models on the same items, with a paired (cluster) bootstrap interval.

    The p-value is McNemar's exact test when every score is 0 or 1, else the two-sided paired bootstrap p-value, which
    is never 0. McNemar's test takes items as independent; the interval does not, so read the two together.

    Raises:
        ValueError: as `mean_ci95`, and when the two models have different numbers of scores.

    Source: McNemar 1947; Miller 2024, arXiv:2411.00640.
    """
    return macro_difference([(ours, theirs, groups)], seed)


def macro_difference(pairs: Sequence[ScorePair], seed: int) -> Difference:
    """Mean over tasks of each task's paired difference; every task weighs the same, and is resampled on its own.

    One task gives what `compare` gives; several always use the paired bootstrap p-value.

    Raises:
        ValueError: no task, or as `compare`.

    Source: Efron & Tibshirani 1993, ch. 8 (each sample resampled on its own) and ch. 15.
    """
    if not pairs:
        raise ValueError("no task to compare on")
    rng = np.random.default_rng(seed)
    differences = [_paired(ours, theirs) for ours, theirs, _ in pairs]
    drawn = [_bootstrap_means(d, groups, rng) for d, (_, _, groups) in zip(differences, pairs, strict=True)]
    means = np.mean(drawn, axis=0)
    improved = sum(int(np.sum(d > 0)) for d in differences)
    regressed = sum(int(np.sum(d < 0)) for d in differences)
    if len(pairs) == 1 and all(np.isin(scores, (0, 1)).all() for scores in pairs[0][:2]):
        test, p_value = "McNemar exact", _mcnemar(improved, regressed)
    else:
        test, p_value = "paired bootstrap", _bootstrap_p(means)
    value = float(np.mean([np.mean(d) for d in differences]))
    return Difference(value, _percentiles(means), p_value, test, improved, regressed)


def _paired(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    if len(ours) != len(theirs):
        raise ValueError(f"paired scores must be of the same items: {len(ours)} scores against {len(theirs)}")
    return np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)


def _bootstrap_means(values: FloatArray, groups: IntArray | None, rng: np.random.Generator) -> FloatArray:
    """Means of `RESAMPLES` resamples of whole groups: sum of what was drawn over its size."""
    sums, sizes = _units(values, groups)
    units = len(sums)
    if units < 2:
        raise ValueError(f"{len(values)} scores in {units} group(s): an interval needs at least two groups")
    means = np.empty(RESAMPLES)
    step = max(1, DRAWS_AT_ONCE // units)
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(units, size=(min(step, RESAMPLES - start), units), dtype=np.int32)
        # Without groups every unit is one item, and the second gather would only count to `units`.
        size = units if groups is None else sizes[drawn].sum(axis=1)
        means[start : start + step] = sums[drawn].sum(axis=1) / size
    return means


def _units(values: FloatArray, groups: IntArray | None) -> tuple[FloatArray, IntArray]:
    """Sum and size of each resampling unit, sorted so that the order of the items cannot change the interval."""
    scores = np.asarray(values, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers")
    if groups is None:
        return np.sort(scores), np.ones(len(scores), dtype=np.int64)
    if len(groups) != len(scores):
        raise ValueError(f"every score needs a group: {len(scores)} scores, {len(groups)} groups")
    member = np.unique(groups, return_inverse=True)[1]
    sums: FloatArray = np.asarray(np.bincount(member, weights=scores), dtype=np.float64)
    sizes: IntArray = np.asarray(np.bincount(member), dtype=np.int64)
    order = np.lexsort((sizes, sums))
    return sums[order], sizes[order]


def _percentiles(means: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _mcnemar(improved: int, regressed: int) -> float:
    from scipy.stats import binomtest

    discordant = improved + regressed
    return float(binomtest(improved, discordant, 0.5).pvalue) if discordant else 1.0


def _bootstrap_p(means: FloatArray) -> float:
    """Twice the smaller tail at 0; the +1 keeps it above 0 (Davison & Hinkley 1997, section 4.2)."""
    tail = min(int(np.sum(means <= 0)), int(np.sum(means >= 0)))
    return min(1.0, 2 * (tail + 1) / (len(means) + 1))
