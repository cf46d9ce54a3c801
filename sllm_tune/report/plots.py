"""Where the marks of the report's plots are drawn, in percent of a plot's width and height."""

import math
from collections.abc import Sequence
from itertools import pairwise

from sllm_tune.evaluate.plain import TaskDict, TrainingDict

MOST_CURVE_POINTS = 400


def interval_plots(tasks: Sequence[tuple[str, TaskDict]]) -> list[dict[str, object]]:
    """One plot a task; tasks of one metric share an axis, and a score that is not finite has no marks.

    Positions are in percent, so that the drawing stretches while its letters keep their size.
    """
    ticks: dict[str, list[float]] = {}
    for metric in {task["metric"] for _, task in tasks}:
        scores = [score for _, task in tasks if task["metric"] == metric for score in task["scores"].values()]
        found: list[float | None] = [v for s in scores for v in (s["value"], *(s["ci95"] or []))]
        values = [v for v in found if v is not None and math.isfinite(v)]
        ticks[metric] = _axis(values or [0.0, 1.0])
    plots: list[dict[str, object]] = []
    for name, task in tasks:
        axis = ticks[task["metric"]]
        rows: list[dict[str, object]] = []
        for model, score in task["scores"].items():
            figures: list[float | None] = [score["value"], *(score["ci95"] or [score["value"]] * 2)]
            known = [v for v in figures if v is not None and math.isfinite(v)]
            marks = [_share(v, axis) for v in known] if len(known) == len(figures) else []
            rows.append({"model": model, "score": score, "marks": marks})
        marked = [(tick, _share(tick, axis)) for tick in axis]
        plots.append({"name": name, "task": task, "rows": rows, "ticks": marked, "pattern": _pattern(axis)})
    return plots


def loss_plot(training: TrainingDict) -> dict[str, object] | None:
    """The two curves in percent of the plot, or None where no finite loss was logged."""
    logged = {name: training.get(name) or [] for name in ("loss", "validation_loss")}
    curves = {
        name: [(p["step"], p["loss"]) for p in points if p["loss"] is not None and math.isfinite(p["loss"])]
        for name, points in logged.items()
    }
    points = curves["loss"] + curves["validation_loss"]
    if not points:
        return None
    x_ticks, y_ticks = _axis([0, *(step for step, _ in points)], finest=1), _axis([loss for _, loss in points])
    every = math.ceil(len(curves["loss"]) / MOST_CURVE_POINTS) or 1
    drawn = {"loss": curves["loss"][::every], "validation_loss": curves["validation_loss"]}
    return {
        "curves": curves,
        "marks": {
            name: [(_share(step, x_ticks), round(100 - _share(loss, y_ticks), 2)) for step, loss in curve]
            for name, curve in drawn.items()
        },
        "x_ticks": [(tick, _share(tick, x_ticks)) for tick in x_ticks],
        "y_ticks": [(tick, 100 - _share(tick, y_ticks)) for tick in y_ticks],
        "pattern": _pattern(y_ticks),
        "every": every,
        "lost": sum(map(len, logged.values())) - len(points),
    }


def waterfall(sizes: list[float | None]) -> dict[str, object] | None:
    """A bar a step, from the size before it to the size after; the first and one more at the end stand on zero.

    Args:
        sizes: Parameters of the base and after each step.

    Returns:
        `bars` (start, length and turn, which is "whole", "less", "more" or "same") and `ends`, where each bar leaves
        off for the next one, in percent; or None where a size is not known.
    """
    known = [size for size in sizes if size is not None and math.isfinite(size)]
    if len(known) < len(sizes) or max(known) <= 0:
        return None
    unit, letter = (1e9, "B") if max(known) >= 1e9 else (1e6, "M")
    axis = _axis([0.0, max(known) / unit])
    ends = [_share(size / unit, axis) for size in known]
    bars: list[tuple[float, float, str]] = [(0.0, ends[0], "whole")]
    for (before, old), (after, new) in pairwise(zip(known, ends, strict=True)):
        turn = "less" if after < before else "more" if after > before else "same"
        bars.append((min(old, new), round(abs(new - old), 2), turn))
    bars.append((0.0, ends[-1], "whole"))
    ticks = [(tick, _share(tick, axis)) for tick in axis]
    return {"bars": bars, "ends": ends, "ticks": ticks, "pattern": _pattern(axis), "unit": letter}


def importance_plot(values: list[float | None], kept: set[int]) -> dict[str, object] | None:
    """One mark a layer, in percent of the plot; None where no layer has a value.

    Args:
        values: What each layer counts, None where nothing was measured.
        kept: The layers that stayed.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    x_ticks, y_ticks = _axis([0, len(values) - 1], finest=1), _axis([0.0, *known])
    marks: list[dict[str, object]] = []
    curves: list[list[tuple[float, float]]] = [[]]
    for layer, value in enumerate(values):
        x = _middle(layer, len(values))
        y = None if value is None else round(100 - _share(value, y_ticks), 2)
        marks.append({"layer": layer, "value": value, "kept": layer in kept, "x": x, "y": y})
        if y is None:
            curves.append([])
        else:
            curves[-1].append((x, y))
    return {
        "marks": marks,
        "curves": [curve for curve in curves if len(curve) > 1],
        "unmeasured": len(known) < len(values),
        "x_ticks": [(tick, _middle(tick, len(values))) for tick in x_ticks if tick < len(values)],
        "y_ticks": [(tick, 100 - _share(tick, y_ticks)) for tick in y_ticks],
        "pattern": _pattern(y_ticks),
    }


def _middle(place: float, count: int) -> float:
    """The middle of one of `count` equal places, in percent."""
    return round(100 * (place + 0.5) / count, 2)


def _axis(values: list[float], finest: float = 0.0) -> list[float]:
    """Round tick marks, at most eight and not finer than `finest`, that enclose all values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 6))
    step = next(magnitude * k for k in (1, 2, 5, 10) if magnitude * k * 6 >= span * (1 - 1e-9))
    step = max(step, finest)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, max(last, first + 1) + 1)]


def _pattern(ticks: list[float]) -> str:
    """One number of decimals for a whole axis."""
    return f"{{:,.{max(len(f'{tick:.10f}'.rstrip('0').partition('.')[2]) for tick in ticks)}f}}"


def _share(value: float, ticks: list[float]) -> float:
    """Where a value lies on an axis, in percent of its length."""
    return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)
