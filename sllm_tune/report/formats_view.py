"""What was exported, as a table: how each file answers beside what was scored, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

from sllm_tune.evaluate.exported import Exported
from sllm_tune.evaluate.plain import ResultsDict
from sllm_tune.report.words import Words


def formats_view(formats: Sequence[Exported], results: ResultsDict, words: Words) -> dict[str, object] | None:
    """What the templates show of a run's exports.

    Args:
        formats: In any order.
        results: What they were held against.
        words: Of one language.

    Returns:
        `columns` and `rows`, the base above and then the most bytes first; None without an export.
    """
    if not any(one.format != "base" for one in formats):
        return None
    tasks = [name for name, task in results["tasks"].items() if task["kind"] == "domain"]
    order = sorted(formats, key=lambda one: (one.format != "base", -one.speed.bytes))
    rows = [_row(one, tasks, results, words) for one in order]
    return {"columns": [*tasks, *words.text["format_columns"].values()], "rows": rows}


def _row(one: Exported, tasks: list[str], results: ResultsDict, words: Words) -> dict[str, object]:
    """Name, what is said of it, and cells of a figure and what stands below it."""
    text, speed = words.text, one.speed
    cells: list[tuple[str, str]] = []
    for name in tasks:
        if one.format == "base":  # not asked again
            cells.append((words.number(results["tasks"][name]["scores"]["base"]["value"]), ""))
        else:
            found = one.tasks[name]
            cells.append((words.number(found.accuracy), words.number(100 * found.agreement, text["format_alike"])))
    cells += [
        (words.cost("bytes", speed.bytes), ""),
        (words.number(speed.load_s, text["seconds"]), ""),
        (words.number(speed.prompt_tokens_per_s, "{:,.0f}"), ""),
        (words.number(speed.generation_tokens_per_s, "{:,.0f}"), ""),
        (words.cost("bytes", speed.resident_bytes), ""),
        (words.plain(speed.threads), ""),
    ]
    weighed = text["format_weighed"].format(n=f"{one.importance_rows:,}") if one.importance_rows else ""
    name = f"{text['format_names'][one.format]}, {one.kind}"
    return {"name": name, "weighed": weighed, "ours": one.format != "base", "cells": cells}
