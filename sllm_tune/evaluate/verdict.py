"""What the figures of a comparison amount to: the verdict over the base and the controls, and the recipe's gate."""

from collections.abc import Mapping, Sequence

from sllm_tune.evaluate.plain import GateDict, VerdictDict
from sllm_tune.evaluate.statistics import Difference, Interval
from sllm_tune.recipe.evaluate import GateSection

REASONS: dict[str, dict[str | tuple[str, bool], str]] = {
    "en": {
        ("gain", True): (
            "Gain on {task} passes: the lower bound of its 95 % interval, {bound}, is at least min_gain {limit}."
        ),
        (
            "gain",
            False,
        ): "Gain on {task} fails: the lower bound of its 95 % interval, {bound}, is below min_gain {limit}.",
        ("loss", True): "{what} passes: the upper bound of its 95 % interval, {bound}, is at most {key} {limit}.",
        ("loss", False): "{what} fails: the upper bound of its 95 % interval, {bound}, is above {key} {limit}.",
        "max_forgetting": "Forgetting",
        "max_instruction_loss": "Loss of everyday instructions followed",
        "max_label_collapse": "Label collapse",
    },
    "ko": {
        ("gain", True): "{task} 향상 폭 충족: 95% 신뢰구간의 하한({bound})이 min_gain({limit}) 이상입니다.",
        ("gain", False): "{task} 향상 폭 미충족: 95% 신뢰구간의 하한({bound})이 min_gain({limit})보다 낮습니다.",
        ("loss", True): "{what} 충족: 95% 신뢰구간의 상한({bound})이 {key}({limit}) 이하입니다.",
        ("loss", False): "{what} 미충족: 95% 신뢰구간의 상한({bound})이 {key}({limit})보다 높습니다.",
        "max_forgetting": "망각",
        "max_instruction_loss": "일상 지시 이행 감소",
        "max_label_collapse": "라벨 붕괴",
    },
}


def verdict(
    gain: Difference, controls: Mapping[str, Difference], not_compared: Mapping[str, Sequence[str]]
) -> VerdictDict:
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
    limits: GateSection, gains: Mapping[str, Interval], losses: Mapping[str, Interval | None], language: str = "en"
) -> GateDict:
    """Judge by the bound that is worse for us: each task's gain by its lower bound, a loss by its upper.

    Args:
        limits: Of the recipe, in the unit of the scores.
        gains: Specialist minus base, by the task's name: a loss on one task is not made up for by another.
        losses: What was lost, by the limit that is set to it; None was not measured.
        language: Of the reasons: "en" or "ko".

    Raises:
        ValueError: a limit is set to what was not measured.
    """
    said, reasons, passed = REASONS[language], list[str](), True
    for task, gain in gains.items():
        enough = gain.ci95[0] >= limits.min_gain
        bound = _figure(gain.ci95[0], limits.min_gain)
        reasons.append(said["gain", enough].format(task=task, bound=bound, limit=limits.min_gain))
        passed = passed and enough
    for key, loss in losses.items():
        limit: float | None = getattr(limits, key)
        if limit is None:
            continue
        if loss is None:
            raise ValueError(f"{key} is set, but what it limits was not measured")
        kept = loss.ci95[1] <= limit
        bound = _figure(loss.ci95[1], limit)
        reasons.append(said["loss", kept].format(what=said[key], key=key, bound=bound, limit=limit))
        passed = passed and kept
    return {"passed": passed, "reasons": reasons}


def _figure(bound: float, limit: float) -> str:
    """The bound with as many decimals, at least three, as it takes to stay on its own side of the limit."""
    for decimals in range(3, 17):
        shown = round(bound, decimals) + 0.0  # a rounded -0.0 becomes 0.0
        if (shown > limit, shown < limit) == (bound > limit, bound < limit):
            return f"{shown:.{decimals}f}"
    return repr(bound)
