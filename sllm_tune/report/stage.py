"""Report: the page and the Markdown of the results, and nothing that they do not say."""

from __future__ import annotations

from pathlib import Path

from sllm_tune.report.page import write_report
from sllm_tune.runs.files import sha256, versions
from sllm_tune.runs.folder import Run
from sllm_tune.runs.stage import Inputs, Making


class ReportInputs(Inputs):
    """What a report shows, and whose words it is in."""

    version: str
    """Of this package."""


def inputs(run: Run) -> ReportInputs:
    """What the report is given of a run."""
    results = run.dir / "scores" / "results.json"
    found = sha256(results) if results.is_file() else None
    return ReportInputs(version=versions().get("sllm-tune", "unknown"), file={"scores/results.json": found})


def report(given: ReportInputs, made: Making) -> dict[str, Path]:
    """Make `report.html` and `report.md`."""
    write_report(made.made("scores/results.json"), made.work)
    return {name: made.work / name for name in ("report.html", "report.md")}
