"""Every bench goes its whole way with `--smoke`: tiny models, a few rows, no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
NO_NETWORK = """
import socket
def refuse(*asked):
    raise OSError("no network in a smoke run")
socket.socket.connect = socket.getaddrinfo = refuse
"""


def test_the_benches_are_found():
    assert len(BENCHES) >= 16


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_runs_and_records_its_figures_without_a_network(name: str, tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NETWORK)
    record = tmp_path / f"{name}.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--json", str(record)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    raw = json.loads(record.read_text(encoding="utf-8"))
    assert raw["smoke"] is True
    assert raw["claims"]
    for row in raw["claims"]:
        table_line = f"{'held  ' if row['held'] else 'FAILED'}  {row['claim']}"
        assert any(line.startswith(table_line) and row["figure"] in line for line in done.stdout.splitlines())
