"""What is told of an export: a line in the terminal, and a row of the run's report with the base's beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sllm_tune.deliver.gguf_model import to_gguf
from sllm_tune.deliver.half_made import folder_beside
from sllm_tune.deliver.speed import measure
from sllm_tune.errors import SllmTuneError
from sllm_tune.evaluate.exported import FOLDER, Exported, formats_of
from sllm_tune.model.find import Base
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.report.stage import show_formats
from sllm_tune.runs.folder import open_run


def in_a_line(one: Exported) -> str:
    """How it answers beside what was scored, and what it takes."""
    tasks = [
        f"{name}: {task.agreement:.1%} of {task.n:,} items answered as scored, {task.accuracy:.3f} "
        f"(scored {task.scored_accuracy:.3f})"
        for name, task in one.tasks.items()
    ]
    speed = one.speed
    takes = (
        f"{speed.bytes / 1e6:,.1f} MB, {speed.prompt_tokens_per_s:,.0f} prompt and "
        f"{speed.generation_tokens_per_s:,.0f} answer tokens/s on {speed.threads} CPU thread"
        f"{'s' * (speed.threads > 1)}, {speed.resident_bytes / 1e6:,.0f} MB resident"
    )
    return "; ".join([*tasks, takes])


def show_in_report(run_dir: Path, one: Exported) -> None:
    """Tell of an export in the run's report. What is in the way of that is said, and costs the export nothing."""
    try:
        with open_run(run_dir) as run:
            one.write(run.dir / FOLDER / f"{one.format}-{one.kind}.json")
            if not any(name.startswith(f"{FOLDER}/base-") for name in formats_of(run.dir)):
                _measure_base(run.dir, one)
            show_formats(run)
    except (SllmTuneError, OSError) as error:
        print(f"export: the report does not show it: {error}", file=sys.stderr, flush=True)


def _measure_base(run_dir: Path, beside: Exported) -> None:
    """What the model that the run began with takes as a file of the same kind of engine."""
    print("export: the base as GGUF, to be measured beside it", file=sys.stderr, flush=True)
    file = run_dir / FOLDER / "base.gguf"
    try:
        section = BaseModelSection.model_validate(json.loads((run_dir / "recipe.json").read_bytes())["base_model"])
        checkpoint = Base(section=section, folder=run_dir).checkpoint
        with folder_beside(file) as work:
            to_gguf(checkpoint, work / file.name, "base")
            speed = measure(work / file.name, beside.speed.threads)
    except (SllmTuneError, ValueError, KeyError, TypeError, OSError) as error:
        print(f"export: the report does not show the base beside it: {error}", file=sys.stderr, flush=True)
        return
    same = {"kind": "f16", "importance_rows": 0, "tasks": {}, "results_sha256": beside.results_sha256}
    Exported.model_validate({"format": "base", "speed": speed, **same}).write(run_dir / FOLDER / "base-f16.json")
