"""What every measurement shares: its options, its raw JSON, and the table it ends with."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import sllm_tune  # first: it turns the telemetry of the other libraries off
from sllm_tune.run.files import fingerprint, sha256, versions, write_json

QUICKSTART = Path("recipes/legal/quickstart.yaml")
SLLM_TUNE = [sys.executable, "-m", "sllm_tune.cli"]


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Options with the script's docstring as help, and `--json`."""
    made = argparse.ArgumentParser(prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=Path("runs") / "bench" / f"{name.removesuffix('.py')}.json",
        help="raw figures; a run that was cut short goes on from this file (default: %(default)s)",
    )
    return made


def add_work(options: argparse.ArgumentParser, name: str) -> None:
    """The option `--work`: where the runs that are measured lie, those of other code and recipes apart."""
    options.add_argument(
        "--work",
        type=lambda given: Path(given) / code()[:12],
        metavar="FOLDER",
        default=f"runs/bench/{name}",
        help="holds a folder of runs for each state of the code (default: %(default)s)",
    )


def code() -> str:
    """SHA-256 of the package and the recipes as they are now."""
    measured = [*Path(sllm_tune.__file__).parent.rglob("*.py"), *Path("recipes").rglob("*.yaml")]
    return fingerprint({str(file): sha256(file) for file in measured})


class Record:
    """The raw JSON file of one measurement; figures of other settings, versions, code or recipes are not kept."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.raw: dict[str, Any] = {"settings": settings, "versions": versions(), "code": code()}
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if all(before.get(key) == value for key, value in self.raw.items()):
            self.raw = before
        elif before:
            print(f"{path}: of other settings, versions, code or recipes; starting anew", file=sys.stderr)

    def save(self, **figures: Any) -> None:
        """Add figures and write the file whole."""
        self.raw |= figures
        write_json(self.path, self.raw)

    def finish(self, claims: list[tuple[bool, str, str]]) -> int:
        """Print each claim with its figure; the exit status is 0 if all of them held, else 1."""
        held = all(claim[0] for claim in claims)
        rows = [{"held": bool(ok), "claim": claim, "figure": figure} for ok, claim, figure in claims]
        self.save(held=held, claims=rows)
        width = max(len(row["claim"]) for row in rows)
        for row in rows:
            print(f"{'held  ' if row['held'] else 'FAILED'}  {row['claim']:{width}}  {row['figure']}")
        print(self.path)
        return 0 if held else 1


def run_folder(doc: argparse.ArgumentParser, folder: Path) -> Path:
    """`folder`, if it is a finished run; else the script ends with exit status 2."""
    if not (folder / "evaluate" / "manifest.json").exists():
        doc.error(f"{folder}: no finished run; make one with: sllm-tune run {QUICKSTART} --run-dir {folder}")
    return folder


def call(command: list[str], log: Path, **options: Any) -> int:
    """Exit status of `command`, whose output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False, **options).returncode
