"""Every bench goes its whole way with `--smoke`: tiny models, a few rows, no network."""

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
NO_NETWORK = """
import socket

_connect = socket.socket.connect

def connect(self, address):  # processes of one training find each other on this machine
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost", socket.gethostname()):
        raise OSError(f"no network in a smoke run: {address}")
    return _connect(self, address)

socket.socket.connect = connect
"""
# Each bench has a process of its own, forked from one that has loaded these: they take longer than a smoke run.
LOADED = [
    *("sllm_tune", "torch", "transformers.modeling_utils", "trl.trainer.sft_trainer", "peft", "bitsandbytes"),
    *("lm_eval.models.huggingface", "lm_eval.tasks", "sklearn.linear_model", "sllm_tune.tasks.rouge"),
    *("sllm_tune.pipeline", "sllm_tune.train.stage", "sllm_tune.evaluate.stage", "sllm_tune.data.stage"),
]


def test_the_benches_are_found():
    assert len(BENCHES) >= 16


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_runs_and_records_its_figures_without_a_network(name: str, tmp_path: Path):
    record, output = tmp_path / f"{name}.json", tmp_path / "output"
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(LOADED)
    process = processes.Process(target=run_bench, args=(name, record, output))
    process.start()
    process.join()
    said = output.read_text(encoding="utf-8")
    assert process.exitcode == 0, said[-4000:]
    raw = json.loads(record.read_text(encoding="utf-8"))
    assert raw["smoke"] is True
    assert raw["claims"]
    for row in raw["claims"]:
        table_line = f"{'held  ' if row['held'] else 'FAILED'}  {row['claim']}"
        assert any(line.startswith(table_line) and row["figure"] in line for line in said.splitlines())


def run_bench(name: str, record: Path, output: Path) -> None:
    """What `python -m benchmarks.NAME --smoke --json RECORD` does."""
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    site = output.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_NETWORK)  # for the processes that the bench starts
    exec(NO_NETWORK, {})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT)])
    os.chdir(ROOT)
    sys.argv = [name, "--smoke", "--json", str(record)]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
