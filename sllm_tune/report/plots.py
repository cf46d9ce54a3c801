"""Where the marks of the report's plots are drawn, in percent of a plot's width and height."""

import math
from typing import Any

MOST_CURVE_POINTS = 400


def interval_plots(tasks: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """One plot a task; tasks of one metric share an axis, and a score that is not finite has no marks.

    Positions are in percent, so that the drawing stretches while its letters keep their size.
    """
    ticks: dict[str, list[float]] = {}
    for metric in {task["metric"] for _, task in tasks}:
        scores = [score for _, task in tasks if task["metric"] == metric for score in task["scores"].values()]
        values = [v for s in scores for v in (s["value"], *(s["ci95"] or [])) if v is not None and math.isfinite(v)]
        ticks[metric] = _axis(values or [0.0, 1.0])
    plots: list[dict[str, Any]] = []
    for name, task in tasks:
        axis = ticks[task["metric"]]
        rows: list[dict[str, Any]] = []
        for model, score in task["scores"].items():
            marks = [score["value"], *(score["ci95"] or [score["value"]] * 2)]
            drawn = all(v is not None and math.isfinite(v) for v in marks)
            rows.append({"model": model, "score": score, "marks": [_share(v, axis) for v in marks] if drawn else []})
        marked = [(tick, _share(tick, axis)) for tick in axis]
        plots.append({"name": name, "task": task, "rows": rows, "ticks": marked, "pattern": _pattern(axis)})
    return plots


def loss_plot(training: dict[str, Any]) -> dict[str, Any] | None:
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
