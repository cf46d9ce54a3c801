"""What every measurement shares: its options, its raw JSON, its table, and tiny stand-ins for `--smoke`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sllm_tune  # first: it turns the telemetry of the other libraries off
from sllm_tune.runs.files import fingerprint, sha256, versions, write_json

QUICKSTART = Path("recipes/legal/quickstart.yaml")
SLLM_TUNE = [sys.executable, "-m", "sllm_tune.cli"]
RECORDS = Path("runs/benchmarks")
# What makes the legal quickstart tiny, but for its base: sample rows, few items, a few steps.
FEW = [
    "data.limit={train: 24, validation: 6, test: 12}",
    "data.max_length=4096",  # so small a vocabulary needs several times the tokens
    "train.sft.max_steps=4",
    "train.sft.logging_steps=1",
    "evaluate.limit_general=6",
    "evaluate.num_fewshot=1",
    "evaluate.gate=null",
]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Options with the module's docstring as help, `--json` and `--smoke`; read with `parse`."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    file = RECORDS / f"{name}.json"
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"raw figures; a run that was cut short goes on from this file (default: {file})",
    )
    made.add_argument(
        "--smoke",
        action="store_true",
        help="the same way on tiny random models and a few rows, in seconds and without a network; its figures mean "
        f"nothing, and lie in {RECORDS / 'smoke'}",
    )
    made.set_defaults(name=name)
    return made


def add_work(options: argparse.ArgumentParser) -> None:
    """The option `--work`: where the runs that are measured lie, those of other code and recipes apart."""
    options.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="holds a folder of runs for each state of the code (default: the name of the raw figures, without .json)",
    )


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """What was typed, with the places of the record and of the runs."""
    given = options.parse_args()
    given.json = given.json or (RECORDS / "smoke" if given.smoke else RECORDS) / f"{given.name}.json"
    given.work = (getattr(given, "work", None) or given.json.with_suffix("")) / code()[:12]
    return given


def code() -> str:
    """SHA-256 of the package and the recipes as they are now."""
    measured = [*Path(sllm_tune.__file__).parent.rglob("*.py"), *Path("recipes").rglob("*.yaml")]
    return fingerprint({str(file): sha256(file) for file in measured})


class Record:
    """The raw JSON file of one measurement; figures of other settings, versions, code or recipes are not kept."""

    def __init__(self, given: argparse.Namespace, settings: dict[str, Any]) -> None:
        self.path: Path = given.json
        self.smoke: bool = given.smoke
        as_read = json.loads(json.dumps(settings))
        self.raw: dict[str, Any] = {"settings": as_read, "smoke": self.smoke, "versions": versions(), "code": code()}
        before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        if all(before.get(key) == value for key, value in self.raw.items()):
            self.raw = before
        elif before:
            print(f"{self.path}: of other settings, versions, code or recipes; starting anew", file=sys.stderr)

    def save(self, **figures: Any) -> None:
        """Add figures and write the file whole."""
        self.raw |= figures
        write_json(self.path, self.raw)

    def finish(self, claims: list[tuple[bool, str, str]]) -> int:
        """Print each claim with its figure; the exit status is 0 if all of them held or nothing was meant, else 1."""
        held = all(claim[0] for claim in claims)
        rows = [{"held": bool(ok), "claim": claim, "figure": figure} for ok, claim, figure in claims]
        self.save(held=held, claims=rows)
        width = max(len(row["claim"]) for row in rows)
        for row in rows:
            print(f"{'held  ' if row['held'] else 'FAILED'}  {row['claim']:{width}}  {row['figure']}")
        if self.smoke:
            print("a smoke run: the figures mean nothing, whether a claim held or not")
        print(self.path)
        return 0 if held or self.smoke else 1


def run_command(command: str, recipe: Path, *arguments: str | Path, smoke: bool) -> int:
    """Exit status of `sllm-tune COMMAND RECIPE ...`, as a user would run it.

    In a process of its own, but for a smoke run: the libraries, which this process has loaded, take longer than it.
    """
    words = [command, str(recipe), *map(str, arguments)]
    if not smoke:
        return subprocess.run([*SLLM_TUNE, *words], check=False).returncode
    from sllm_tune.cli import main

    return main(words)


def finished_run(options: argparse.ArgumentParser, given: argparse.Namespace) -> Path:
    """`--run-dir`, if it is a finished run, else the bench ends with exit status 2; in a smoke run, one made for it."""
    folder: Path = given.run_dir
    if given.smoke:
        folder = given.work / "legal-quickstart"
        if status := run_command("run", QUICKSTART, "--smoke", "--run-dir", folder, smoke=True):
            raise SystemExit(status)
    if not (folder / "evaluate" / "manifest.json").exists():
        options.error(f"{folder}: no finished run; make one with: sllm-tune run {QUICKSTART} --run-dir {folder}")
    return folder


def call(command: list[str], log: Path, **options: Any) -> int:
    """Exit status of `command`, whose output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False, **options).returncode


def task_rows(name: str, folder: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """The rows of the task file `name` in `folder`; in a smoke run the sample rows beside it."""
    from sllm_tune.rows.read import read_rows
    from sllm_tune.sources import fetch
    from sllm_tune.tasks.find import find_task

    if smoke:
        return sample_rows(name)
    task = find_task(name, folder)
    meta = task.metadata
    file = fetch(meta["source"], sha256=meta["sha256"], where=str(task.path), base_dir=folder)
    return read_rows(file, meta.get("records"))


def samples(task: str) -> Path:
    """The sample rows of a task of any domain, or of one that only a measurement needs."""
    places = [*Path("recipes").glob(f"*/samples/{task}.jsonl"), Path(__file__).parent / "samples" / f"{task}.jsonl"]
    return next(path for path in places if path.is_file())


def sample_rows(task: str) -> list[dict[str, Any]]:
    """Rows in the columns of the task's own source, made up for runs without a network."""
    from sllm_tune.runs.files import read_jsonl

    return read_jsonl(samples(task))


def tiny_base(texts: Sequence[str], layers: int = 2) -> Path:
    """A random Llama of some hundred thousand parameters with a tokenizer of `texts`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sllm_tune import smoke

    base = smoke.tiny_base("smollm2", texts)
    if layers == smoke.SIZE["num_hidden_layers"]:
        return base
    folder = base.with_name(f"{base.name}-{layers}-layers")
    if not (folder / "model.safetensors").exists():
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, num_hidden_layers=layers))
        model.generation_config.eos_token_id = list(range(model.config.vocab_size))  # one token ends an answer
        model.save_pretrained(folder)
    return folder


def tiny_quickstart() -> list[str]:
    """Overrides that make the legal quickstart tiny: for benches that set what `--smoke` would set otherwise."""
    tasks = ("privacy_qa", "openbookqa", "piqa")
    texts = [str(value) for task in tasks for row in sample_rows(task) for value in row.values()]
    rows = [f"data.source.{task}={samples(task).resolve()}" for task in tasks]
    alike = f"data.allow_leaks=[{', '.join(tasks)}]"  # a few rows of one hand
    return [f"base_model.path={tiny_base(texts)}", "base_model.sha256=null", *rows, alike, *FEW]
