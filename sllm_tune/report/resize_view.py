"""The steps of a resize, in words and in figures beside the base's."""

import math
from itertools import groupby

from sllm_tune.evaluate.plain import StepDict as Step
from sllm_tune.report.plots import importance_plot, waterfall
from sllm_tune.report.sentences import Sentences


def resize_view(steps: list[Step] | None, text: Sentences) -> dict[str, object] | None:
    """What the templates show of `results["resize"]`; a kind of step that is not known keeps its name and figures.

    Args:
        steps: The base and what each step left of it, or None.
        text: The sentences of one language.

    Returns:
        `rows` of the table, `tasks` (name, kind and items), `most_items` (of any task), the `waterfall`, the
        `cuts` of depth with their importance, and sentences on `heads`; None without a step.
    """
    if not steps or len(steps) == 1:
        return None
    base, last = steps[0], steps[-1]
    scored = {name: score for step in reversed(steps) for name, score in step.get("scores", {}).items()}
    tasks = sorted(scored.items(), key=lambda task: task[1]["kind"] != "domain")
    smaller = (_ratio(last, base, "parameters") or 1) < 1
    return {
        "title": text["resized"]["smaller" if smaller else "other"],
        "most_items": max((score["n"] for score in scored.values()), default=0),
        "tasks": [(name, score["kind"], score["n"]) for name, score in tasks],
        "rows": [_row(step, base, text) for step in steps],
        "waterfall": waterfall([step.get("parameters") for step in steps]),
        "cuts": [_depth(step, text) for step in steps if step["kind"] == "prune_depth" and step.get("importance")],
        "heads": [_heads(step, text) for step in steps if step["kind"] == "prune_width" and step.get("kv_heads")],
    }


def _row(step: Step, base: Step, text: Sentences) -> dict[str, object]:
    size, speed = _ratio(step, base, "parameters"), _ratio(step, base, "tokens_per_second")
    return {
        "step": step,
        "name": _name(step, text),
        "did": _did(step, text),
        "by": _healed_by(step, text) if step["kind"] == "distill" else "",
        "change": None if size is None else 100 * (size - 1),
        "ratio": speed,
        "scores": {name: score["value"] for name, score in step.get("scores", {}).items()},
    }


def _name(step: Step, text: Sentences) -> str:
    return text["step_kinds"].get(step["kind"], step["kind"].replace("_", " "))


def _did(step: Step, text: Sentences) -> str:
    """What a step did, in a few words."""
    said, kind = text["did"], step["kind"]
    if kind == "trim_vocabulary":
        return said[kind].format(before=f"{step['tokens_before']:,}", after=f"{step['tokens']:,}")
    if kind == "prune_depth" and step.get("importance"):
        method = text["depth_methods"].get(step["method"], step["method"])
        return said[kind].format(before=len(step["importance"]), after=len(step["layers"]), method=method)
    if kind == "upscale_depth":  # the upper copy ends with the old model's last layer
        return said[kind].format(before=max(step["layers"]) + 1, after=len(step["layers"]))
    if kind == "prune_width":
        kept = [words.format(n=f"{step[key]:,}") for key, words in text["widths"].items() if step.get(key)]
        return said[kind].format(kept=", ".join(kept))
    if kind == "distill" and step.get("healed_tokens") is not None:
        return said[kind].format(n=f"{step['healed_tokens']:,}")
    if kind == "quantize":
        return said[kind].format(bits=4 if step["quantization"].get("load_in_4bit") else 8)
    if kind == "fit" and (chosen := next((row for row in step["tried"] if row["chosen"]), None)):
        sizes = {"layers": "layers", "neurons": "intermediate_size", "tokens": "tokens"}
        counts = {name: f"{chosen[key]:,}" for name, key in sizes.items()}
        return said[kind].format(tried=len(step["tried"]), **counts)
    return _name(step, text)


def _healed_by(step: Step, text: Sentences) -> str:
    """What a student learned from, and its last loss where one was logged."""
    taught = text["divergences"].get(step["divergence"], step["divergence"])
    said = text["healed_by" if step["share"] else "healed_alone"].format(taught=taught, share=f"{step['share']:g}")
    loss = step.get("loss")
    return said if loss is None or not math.isfinite(loss) else said + text["healed_loss"].format(loss=f"{loss:.3f}")


def _depth(step: Step, text: Sentences) -> dict[str, object]:
    """Which layers went, and the importance of those that went and of those that stayed (least and most)."""
    kept, count = set(step["layers"]), len(step["importance"])
    gone = [layer for layer in range(count) if layer not in kept]
    values = [None if value is None or not math.isfinite(value) else value for value in step["importance"]]
    ends: dict[str, list[float] | None] = {}
    for name, layers in (("gone", gone), ("kept", sorted(kept))):
        known = [value for value in (values[layer] for layer in layers) if value is not None]
        ends[name] = [min(known), max(known)] if known else None
    return {
        "did": _did(step, text),
        "method": step["method"],
        "axis": text["importance_axes"].get(step["method"], step["method"]),
        "count": count,
        "gone": gone,
        "layers": _runs(gone, text["between"]),
        "first": values[gone[0]] if gone else None,
        "ends": ends,
        "plot": importance_plot(values, kept),
    }


def _heads(step: Step, text: Sentences) -> str:
    """How many groups of heads stayed in each layer, and how much of the measured importance they hold."""
    groups, importance = len(step["kv_heads"][0]), step.get("importance_of_heads") or []
    total = math.fsum(map(math.fsum, importance))
    if not total or not math.isfinite(total):
        return text["heads"].format(kept=groups)
    held = math.fsum(row[head] for row, kept in zip(importance, step["kv_heads"], strict=True) for head in kept)
    return text["heads_share"].format(kept=groups, before=len(importance[0]), share=f"{100 * held / total:.0f}")


def _runs(layers: list[int], between: str) -> str:
    """[3, 4, 5, 9] -> "3 to 5, 9"."""
    grouped = groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])
    runs = [[layer for _, layer in run] for _, run in grouped]
    return ", ".join(
        between.format(low=run[0], high=run[-1]) if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _ratio(step: Step, base: Step, key: str) -> float | None:
    value, whole = step.get(key), base.get(key)
    return value / whole if value is not None and whole else None
