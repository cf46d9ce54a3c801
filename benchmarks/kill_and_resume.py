"""A run that is killed with SIGKILL, at twelve moments, goes on as if it had not been: so it should, and is it so?

The job is the quickstart's own data and tokenizer with a tiny random Llama, so that minutes suffice. One run is left
alone. Each of the others starts from that one's finished stages, is killed as soon as a certain file appears in its
folder (a checkpoint half-written, an output renamed into place while its manifest is not there yet), is looked at, and
is run again to its end. While one of them stands still in training, a second process is started on its folder.

Acceptance: each kill falls into the stage it is meant for; each manifest it leaves has whole outputs; the next run goes
on from the last whole checkpoint or answer, to the same scores and differences, and every logged loss is the
uninterrupted one to 1e-3; the second process is refused with exit status 1.
Budget: 15 minutes on two cores. Cut short, it goes on with the next moment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import QUICKSTART, SLLM_TUNE, Record, add_work, call, parse, parser, tiny_quickstart
from sllm_tune import load_recipe
from sllm_tune.runs.files import read_jsonl
from sllm_tune.runs.folder import MARKER

STAGES = ("prepare", "train", "merge", "evaluate")
CHECKPOINTS, SAMPLES = ".work/train-*/checkpoints", ".work/evaluate-*/scores/samples"
MOMENTS = [  # a stage, and what appears in the run folder at the moment of the kill
    ("prepare", ".work/prepare-*/tasks"),
    ("prepare", ".work/prepare-*/tasks/privacy_qa.yaml"),
    ("prepare", ".work/prepare-*/data/train.jsonl"),
    ("prepare", "prepare/pending.json"),  # finished, but not all of it renamed
    ("train", f"{CHECKPOINTS}/checkpoint-10"),  # still empty
    ("train", f"{CHECKPOINTS}/checkpoint-20/complete"),
    ("train", f"{CHECKPOINTS}/checkpoint-60/optimizer.pt"),  # second epoch, half-written
    ("train", "adapter"),
    ("merge", ".work/merge-*/merging"),
    ("evaluate", f"{SAMPLES}/privacy_qa/base.jsonl"),
    ("evaluate", f"{SAMPLES}/openbookqa/specialised.jsonl"),
    ("evaluate", "evaluate/pending.json"),  # finished, but not all of it renamed
]
SMOKE_MOMENTS = [("train", f"{CHECKPOINTS}/checkpoint-4/complete")]
SECOND_PROCESS_AT = (f"{CHECKPOINTS}/checkpoint-20/complete", SMOKE_MOMENTS[0][1])
CLAIMS = {
    "in_stage": "the kill fell into its stage",
    "whole": "each manifest that it left had whole outputs",
    "went_on": "run again, it went on from the last whole checkpoint or answer",
    "same_scores": "it completed with the uninterrupted run's scores and differences",
}
TOLERANCE, TRIES = 1e-3, 5
STEPS, SAVE_STEPS = {False: 80, True: 8}, {False: 10, True: 2}  # without and with --smoke
JOB = [
    "base_model.sha256=null",
    "data.limit={train: 640, validation: 64, test: 128}",
    "train.sft.logging_steps=1",
    "evaluate.general=[openbookqa]",
    "evaluate.limit_general=32",
    "evaluate.num_fewshot=1",
    "evaluate.gate=null",
]


def job_of(smoke: bool, work: Path) -> list[str]:
    """Overrides of the recipe; 80 steps are two epochs."""
    # Tiny, an epoch is six steps: its validation and the checkpoint do not fall on the same step.
    job = (
        [*tiny_quickstart(), "train.sft.per_device_train_batch_size=4"]
        if smoke
        else [f"base_model.path={tiny_base(work)}", *JOB]
    )
    steps = [f"train.sft.max_steps={STEPS[smoke]}", f"train.sft.save_steps={SAVE_STEPS[smoke]}"]
    return [*job, *steps, "train.sft.use_cpu=true", "data.replay=null"]


def main() -> int:
    options = parser("kill_and_resume", __doc__)
    add_work(options)
    options.add_argument("--first", type=int, metavar="N", help="only the first N moments, to try this script")
    given = parse(options)
    moments = SMOKE_MOMENTS if given.smoke else MOMENTS[: given.first]
    job = job_of(given.smoke, given.work)
    record = Record(given, {"job": job, "moments": moments})
    done: list[dict[str, Any]] = record.raw.get("kills", [])
    reference = given.work / "uninterrupted"
    command = [*SLLM_TUNE, "run", str(QUICKSTART), *job, "--run-dir"]
    if not done or not reference.exists():
        shutil.rmtree(reference, ignore_errors=True)
        if status := call([*command, str(reference)], log := given.work / "uninterrupted.log"):
            print(f"the uninterrupted run ended with exit status {status}; see {log}", file=sys.stderr)
            return 1
    for stage, pattern in moments[len(done) :]:
        folder = given.work / f"killed-{len(done) + 1:02}"
        done.append(interrupted(command, reference, folder, stage, pattern, given.smoke))
        record.save(kills=done)
        print(f"{len(done):2} {stage:8} at {pattern}", file=sys.stderr, flush=True)
    claims = [
        (all(row[key] for row in done), text, f"{sum(row[key] for row in done)} of {len(done)} kills")
        for key, text in CLAIMS.items()
    ]
    loss = max(row["loss"] for row in done)
    claims.append((loss <= TOLERANCE, f"losses equal the uninterrupted run's to {TOLERANCE:g}", f"largest {loss:.1e}"))
    second = next((row["second_process"] for row in done if row["second_process"]), {})
    refused = second.get("status") == 1 and "in use by process" in second["message"]
    said = next(iter(second.get("message", "-").splitlines()), "-")
    claims.append((refused, "a second process on the folder is refused with exit status 1", said))
    return record.finish(claims)


def tiny_base(work: Path) -> Path:
    """A random Llama of 3 million parameters with the quickstart's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sllm_tune.model.find import find_base
    from sllm_tune.model.load import load_tokenizer

    folder = (work / "tiny-base").absolute()
    if not (folder / "model.safetensors").exists():
        base = load_recipe(QUICKSTART).base_model
        path = find_base(base, QUICKSTART.parent)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
        torch.manual_seed(0)
        load_tokenizer(path, base).save_pretrained(folder)
        LlamaForCausalLM(LlamaConfig.from_pretrained(path, **sizes, **heads)).save_pretrained(folder)
    return folder


def interrupted(
    command: list[str], reference: Path, folder: Path, stage: str, pattern: str, smoke: bool
) -> dict[str, Any]:
    """Kill at the moment, look, run again, compare."""
    log = folder.with_suffix(".log")
    row: dict[str, Any] = {"stage": stage, "moment": pattern}
    for _ in range(TRIES):  # the shortest moments last a few milliseconds
        begin(folder, reference, STAGES.index(stage))
        row |= kill([*command, str(folder)], folder, pattern, log)
        manifests = [name for name in STAGES if (folder / name / "manifest.json").exists()]
        row["in_stage"] = row["killed"] and manifests == list(STAGES[: STAGES.index(stage)])
        if row["in_stage"]:
            break
    row["left"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    row["whole"] = all(whole(folder, name) for name in manifests)
    if status := call([*command, str(folder)], log):
        raise SystemExit(f"killed at {pattern} and run again, it ended with exit status {status}; see {log}")
    row["went_on"] = went_on(row["left"], log.read_text(encoding="utf-8"), stage, smoke)
    row["same_scores"] = whole(folder, "evaluate") and scores(folder) == scores(reference)
    ours, theirs = losses(folder), losses(reference)
    row["loss"] = max(abs(ours[step] - loss) for step, loss in theirs.items())
    return row


def begin(folder: Path, reference: Path, finished: int) -> None:
    """A run folder that has the reference's first `finished` stages and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy2(reference / MARKER, folder / MARKER)
    for stage in STAGES[:finished]:
        manifest = reference / stage / "manifest.json"
        for name in [f"{stage}/manifest.json", *json.loads(manifest.read_text(encoding="utf-8"))["outputs"]]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (reference / name).is_dir() else shutil.copy2
            copy(reference / name, folder / name)


def kill(command: list[str], folder: Path, pattern: str, log: Path) -> dict[str, Any]:
    """Start, and kill the whole process group when `pattern` appears in `folder`."""
    second, started = None, time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None and not any(folder.glob(pattern)):
            time.sleep(0.001)
        seconds = time.monotonic() - started
        if pattern in SECOND_PROCESS_AT and process.poll() is None:
            os.killpg(process.pid, signal.SIGSTOP)  # it keeps its lock
            refused = subprocess.run(command, capture_output=True, text=True, check=False)
            second = {"status": refused.returncode, "message": refused.stderr.strip()}
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    return {"killed": killed, "seconds": seconds, "second_process": second}


def whole(folder: Path, stage: str) -> bool:
    """Whether everything that the stage's manifest lists is there; raises if a file of it cannot be read to its end."""
    from safetensors import safe_open

    outputs = json.loads((folder / stage / "manifest.json").read_text(encoding="utf-8"))["outputs"]
    for path in (path for name in outputs for path in [folder / name, *(folder / name).rglob("*")]):
        if path.suffix == ".safetensors":
            safe_open(path, "np")  # refuses a file that is shorter than its header says
        elif path.suffix == ".jsonl":
            read_jsonl(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    return all((folder / name).exists() for name in outputs)


def went_on(left: list[str], log: str, stage: str, smoke: bool) -> bool:
    """Whether the next run's log shows that it took up what the killed one had finished."""
    if stage == "train":
        whole_at = max((int(m[1]) for name in left if (m := re.search(r"checkpoint-(\d+)/complete$", name))), default=0)
        shown = [int(step) for step in re.findall(rf"\b(\d+)/{STEPS[smoke]} \[", log) if step != "0"]
        first = min(shown, default=STEPS[smoke] + 1)  # none: every step was done
        return whole_at < first <= whole_at + SAVE_STEPS[smoke]
    answered = [m.groups() for name in left if (m := re.search(r"samples/(\w+)/(\w+)\.jsonl$", name))]
    return not any(f"evaluate: {model} on {task}," in log for task, model in answered)


def scores(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "scores" / "results.json").read_text(encoding="utf-8"))
    tasks = {name: (task["scores"], task["differences"]) for name, task in results["tasks"].items()}
    return {"tasks": tasks, "forgetting": results["forgetting"], "agreement": results["merge_agreement"]}


def losses(folder: Path) -> dict[tuple[str, int], float]:
    rows = read_jsonl(folder / "train" / "metrics.jsonl")
    return {(key, row["step"]): row[key] for row in rows for key in ("loss", "eval_loss") if key in row}


if __name__ == "__main__":
    sys.exit(main())
