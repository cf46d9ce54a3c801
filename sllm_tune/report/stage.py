"""Report: the page and the Markdown of the results, and nothing that they do not say."""

from __future__ import annotations

from pathlib import Path

from sllm_tune.evaluate.exported import FOLDER, formats_of
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
    found = {"scores/results.json": sha256(results) if results.is_file() else None}
    found |= {name: sha256(file) for name, file in formats_of(run.dir).items()}
    return ReportInputs(version=versions().get("sllm-tune", "unknown"), file=found)


def report(given: ReportInputs, made: Making) -> dict[str, Path]:
    """Make `report.html` and `report.md`."""
    formats = [made.made(name) for name in given.file if name.startswith(f"{FOLDER}/")]
    write_report(made.made("scores/results.json"), made.work, formats)
    return {name: made.work / name for name in ("report.html", "report.md")}


def show_formats(run: Run) -> None:
    """Make the report of a finished run again, with what was exported since; nothing where it has none.

    Raises:
        RunFolderError: the run's scores cannot be read.
    """
    before, given = run.manifest("report"), inputs(run)
    if before is None:
        return
    made = Making(run, "report", given, run.work("report", given.flat()))
    run.commit("report", given.flat(), outputs=report(given, made), seed=before["seed"], record=made.record)
