"""What the figures of a comparison amount to: the verdict over the base and the controls, and the recipe's gate."""

from collections.abc import Mapping, Sequence
from typing import Any

from sllm_tune.evaluate.statistics import Difference, Interval

REASONS = {
    "en": {
        ("gain", True): (
            "Gain on {task} passes: the lower bound of its 95 % interval, {bound}, is at least min_gain {limit}."
        ),
        (
            "gain",
            False,
        ): "Gain on {task} fails: the lower bound of its 95 % interval, {bound}, is below min_gain {limit}.",
        ("forgetting", True): (
            "Forgetting passes: the upper bound of its 95 % interval, {bound}, is at most max_forgetting {limit}."
        ),
        ("forgetting", False): (
            "Forgetting fails: the upper bound of its 95 % interval, {bound}, is above max_forgetting {limit}."
        ),
    },
    "ko": {
        ("gain", True): "{task} 향상 폭 충족: 95% 신뢰구간의 하한({bound})이 min_gain({limit}) 이상입니다.",
        ("gain", False): "{task} 향상 폭 미충족: 95% 신뢰구간의 하한({bound})이 min_gain({limit})보다 낮습니다.",
        ("forgetting", True): "망각 충족: 95% 신뢰구간의 상한({bound})이 max_forgetting({limit}) 이하입니다.",
        ("forgetting", False): "망각 미충족: 95% 신뢰구간의 상한({bound})이 max_forgetting({limit})보다 높습니다.",
    },
}


def verdict(
    gain: Difference, controls: Mapping[str, Difference], not_compared: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """One outcome from the gain over the base, and the controls that the specialist is not shown to beat.

    A difference is shown only if its 95 % interval leaves out 0 and p < 0.05.

    Args:
        gain: Specialist minus base.
        controls: Specialist minus each control on the tasks that it has, by the control's name.
        not_compared: Tasks that a control was not measured on, by the control's name.
    """
    outcome = "better" if gain.shown_positive else "worse" if gain.shown_negative else "no difference shown"
    return {
        "outcome": outcome,
        "gain": {"value": gain.value, "ci95": list(gain.ci95), "p_value": gain.p_value},
        "controls_as_good": [name for name, difference in controls.items() if not difference.shown_positive],
        "not_compared": {name: list(tasks) for name, tasks in not_compared.items()},
    }


def gate(
    min_gain: float,
    max_forgetting: float | None,
    gains: Mapping[str, Interval],
    forgetting: Interval | None,
    language: str = "en",
) -> dict[str, bool | list[str]]:
    """Judge by the bound that is worse for us: each task's gain by its lower bound, forgetting by its upper.

    Args:
        min_gain: Least gain, in the unit of the scores.
        max_forgetting: Most forgetting in the same unit; None does not look.
        gains: Specialist minus base, by the task's name: a loss on one task is not made up for by another.
        forgetting: Base minus specialist on the general tasks.
        language: Of the reasons: "en" or "ko".

    Raises:
        ValueError: `max_forgetting` is set but forgetting was not measured.
    """
    said, reasons, passed = REASONS[language], list[str](), True
    for task, gain in gains.items():
        enough = gain.ci95[0] >= min_gain
        bound = _figure(gain.ci95[0], min_gain)
        reasons.append(said["gain", enough].format(task=task, bound=bound, limit=min_gain))
        passed = passed and enough
    if max_forgetting is not None:
        if forgetting is None:
            raise ValueError("max_forgetting is set, but no general task measured forgetting")
        kept = forgetting.ci95[1] <= max_forgetting
        bound = _figure(forgetting.ci95[1], max_forgetting)
        reasons.append(said["forgetting", kept].format(bound=bound, limit=max_forgetting))
        passed = passed and kept
    return {"passed": passed, "reasons": reasons}


def _figure(bound: float, limit: float) -> str:
    """The bound with as many decimals, at least three, as it takes to stay on its own side of the limit."""
    for decimals in range(3, 17):
        shown = round(bound, decimals) + 0.0  # a rounded -0.0 becomes 0.0
        if (shown > limit, shown < limit) == (bound > limit, bound < limit):
            return f"{shown:.{decimals}f}"
    return repr(bound)
