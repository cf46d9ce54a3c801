"""Checkpoints of a training: whole ones know the content of their files, and only those are taken up."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sllm_tune.runs.files import sha256, sync, write_json
from sllm_tune.runs.processes import rank

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

COMPLETE = "complete"  # written after all other files of a checkpoint: their names, bytes and SHA-256


def whole_checkpoints() -> TrainerCallback:
    """The trainer's callback that says of a checkpoint, once all of it is on the disk, that it is whole."""
    from accelerate import PartialState
    from transformers import TrainerCallback

    class WholeCheckpoints(TrainerCallback):
        def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
            PartialState().wait_for_everyone()  # each process writes the state of its own random numbers
            if state.is_world_process_zero:
                assert args.output_dir
                complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return WholeCheckpoints()


def complete(checkpoint: Path) -> None:
    """Write what a checkpoint holds into it, when all of that has reached the disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    for path in [*files, *{path.parent for path in files}]:
        sync(path)
    held = {str(path.relative_to(checkpoint)): [path.stat().st_size, sha256(path)] for path in files}
    write_json(checkpoint / COMPLETE, held)
    for path in (checkpoint / COMPLETE, checkpoint, checkpoint.parent):
        sync(path)


def fault_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be taken up, or None: it holds what it held when it was whole."""
    try:
        held: dict[str, list[int | str]] = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        for name, (size, digest) in held.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or sha256(path) != digest:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    return None if held else f"{COMPLETE} is damaged"


def last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that is as it was written; newer ones are removed, and said, by rank 0."""
    found = sorted((work / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for path in reversed(found):
        fault = fault_of(path)
        if fault is None:
            return path
        if rank() == 0:
            print(f"train: {path.name} is not taken up: {fault}", file=sys.stderr, flush=True)
            shutil.rmtree(path)
    return None
