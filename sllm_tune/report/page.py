"""results.json -> report.html and report.md.

Python decides what is said, and in `plots.py` where a mark is drawn; the templates hold the markup and `strings.yaml`
every sentence. Both templates print through the same `Words`, so that page and Markdown cannot show different figures.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from sllm_tune.evaluate.exported import Exported
from sllm_tune.evaluate.plain import ResultsDict, as_plain, seen
from sllm_tune.evaluate.schema import Results
from sllm_tune.report.formats_view import formats_view
from sllm_tune.report.plots import interval_plots, loss_plot
from sllm_tune.report.resize_view import resize_view
from sllm_tune.report.sentences import sentences
from sllm_tune.report.words import Words, environment, fence, markdown_text, verdict_sentence


def write_report(results_path: Path, out_dir: Path, formats: Sequence[Path] = ()) -> Path:
    """Write `report.html` and `report.md` into `out_dir`; each replaces an older one whole or not at all.

    Args:
        results_path: A run's `scores/results.json`.
        out_dir: Made if it is missing; the files are readable by their owner only.
        formats: What was exported, each an `Exported`.

    Returns:
        The path of `report.html`.

    Raises:
        RunFolderError: `results_path` cannot be read, or is not what this version writes.
    """
    results = as_plain(Results.read(results_path, "evaluate"))
    html, markdown = render(results, [Exported.read(file, "export") for file in formats])
    out_dir.mkdir(parents=True, exist_ok=True)
    _replace(out_dir / "report.md", markdown)
    _replace(out_dir / "report.html", html)
    return out_dir / "report.html"


def render(results: ResultsDict, formats: Sequence[Exported] = ()) -> tuple[str, str]:
    """Return the report as one HTML page without scripts or outside parts, and as Markdown.

    Texts in `results` may come from models and data; both forms show them as text, never as markup.

    Args:
        results: The content of `results.json`; figures that are null or not finite are shown as not measured.
        formats: How each exported file answers, and what it takes.
    """
    results = seen(results)
    show_items = results["recipe"].get("report", {}).get("show_items", True)
    words = Words(sentences(results["language"]), results["models"])
    tasks = sorted(results["tasks"].items(), key=lambda task: task[1]["kind"] != "domain")
    view: dict[str, object] = {
        "r": results,
        "t": words.text,
        "w": words,
        "verdict": verdict_sentence(results, words),
        "tasks": tasks,
        "plots": interval_plots(tasks),
        "loss": loss_plot(results["training"]),
        "resized": resize_view(results.get("resize"), words.text),
        "formats": formats_view(formats, results, words),
        "show_items": show_items,
        "counted": ("rows", "groups", "tokens", *(("labels",) if show_items else ())),
        "recipe": yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True, width=100),
        "cost_models": [
            name for name, model in results["models"].items() if words.text["cost_rows"].keys() & model.keys()
        ],
    }
    html = environment().get_template("report.html.j2").render(view)
    markdown = environment(finalize=markdown_text).get_template("report.md.j2").render(view, fence=fence)
    return html, markdown


def _replace(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader or a crash never meets half a file."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
