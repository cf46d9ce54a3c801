"""The end of a run in a terminal: scores, verdict, gate, and what can be done with the specialist."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

from sllm_tune.evaluate.plain import as_plain, seen
from sllm_tune.evaluate.schema import Results, TaskResults
from sllm_tune.report.sentences import sentences
from sllm_tune.report.words import Words, verdict_sentence
from sllm_tune.wording import visible

NEXT = ("ask", "export", "publish")


def summary(results: Results, run_dir: Path) -> str:
    """A table of every score, the report's opening sentence, the gate, and the commands that use the specialist.

    Args:
        results: Of a finished run.
        run_dir: Its folder, as the commands name it.
    """
    shown = seen(as_plain(results))
    words = Words(sentences(results.language), shown["models"])
    text = words.text
    tasks = sorted(results.tasks.items(), key=lambda task: task[1].kind != "domain")
    lines = _aligned([row for name, task in tasks for row in _rows(name, task, words)])
    said = [verdict_sentence(shown, words), words.ability(shown)]
    gate = shown.get("gate")
    if gate is not None:
        said.append(f"{text['gate']}: {text['gate_passed' if gate['passed'] else 'gate_failed']}.")
        said += [f"  {reason}" for reason in gate["reasons"]]
    folder = shlex.quote(str(run_dir))
    commands = [(f"sllm-tune {text['next_commands'][name].format(run=folder)}", text["next"][name]) for name in NEXT]
    return "\n".join([*lines, "", *filter(None, said), "", *_aligned([[f"  {c}", what] for c, what in commands])])


def _rows(name: str, task: TaskResults, words: Words) -> list[list[str]]:
    text = words.text
    about = f"{visible(name)}, {text['n_items'].format(n=f'{task.n:,}')}"
    rows = [[about, words.word("metrics", task.metric), text["interval"], text["difference"]]]
    for model, score in task.scores.items():
        pair = task.differences.get(f"specialised vs {model}")
        difference = f"{words.signed(pair.value)} ({words.interval(list(pair.ci95), '{:+.3f}')})" if pair else ""
        figures = [words.number(score.value), words.interval(list(score.ci95)), difference]
        rows.append([f"  {words.word('models', model)}", *figures])
    return rows


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, as a terminal counts it."""
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def columns(text: str) -> int:
    """What it takes in a terminal: a Korean syllable takes two columns."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )
