"""Training in two processes against one, on a CPU: the same job, the same global batch.

The quickstart on its first examples, once by `sllm-tune train` with 16 rows a batch and once by `accelerate launch
--multi_gpu --num_processes 2 scripts/train.py` with 8. (`accelerate launch --cpu --num_processes 2` starts one process
without a word, so the world size is read back from the manifest.) Rows go in the order of data/train.jsonl, which
prepare has shuffled: grouping by length draws its groups by the batch size of one process, so the batches would differ.

Both train in float32: at the quickstart's learning rate the rounding of bfloat16, which differs with the shape of a
batch, was seen to grow from 0 at the first step to 0.1 nats at the tenth, and would hide a fault of the mechanism.

Acceptance: world size 2; each step's loss is one process's to 0.001 nats; the adapters' B matrices are 0.01 apart at
most, relative to their length.
Budget: 5 minutes for 128 examples on two cores. A finished run is not repeated, an unfinished one goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import QUICKSTART, SLLM_TUNE, Record, add_work, call, parse, parser, tiny_quickstart
from sllm_tune.runs.files import read_jsonl

GLOBAL_BATCH, PROCESSES = 16, 2
TOLERANCE_NATS, FIRST_TOLERANCE_NATS, ADAPTER_TOLERANCE = 1e-3, 1e-5, 0.01
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(PROCESSES)]
JOB = ["train.sft.use_cpu=true", "train.sft.bf16=false", "train.sft.logging_steps=1"]
JOB += ["train.sft.train_sampling_strategy=sequential"]


def main() -> int:
    options = parser("two_processes", __doc__)
    add_work(options)
    options.add_argument("--examples", type=int, default=128, help="for training (default: %(default)s)")
    options.add_argument("overrides", nargs="*", metavar="key.path=value", help="of the recipe, for both runs")
    given = parse(options)
    limit = f"data.limit={{train: {given.examples}, validation: 32, test: 32}}"
    job = [str(QUICKSTART), limit, *(tiny_quickstart() if given.smoke else []), *JOB, *given.overrides]
    record = Record(given, {"job": job, "global_batch": GLOBAL_BATCH})
    runs = {"one": [*SLLM_TUNE, "train"], "two": [*LAUNCH, "scripts/train.py"]}
    for name, command in runs.items():
        batch = GLOBAL_BATCH // (PROCESSES if name == "two" else 1)
        folder, log = given.work / name, given.work / f"{name}.log"
        command += [*job, f"train.sft.per_device_train_batch_size={batch}", "--run-dir", str(folder)]
        if status := call(command, log):
            print(f"{name}: exit status {status}; see {log}", file=sys.stderr)
            return 1
        record.save(**{name: look(folder)})
        print(f"{name}: world size {record.raw[name]['world_size']}", file=sys.stderr, flush=True)
    figures = compare(record.raw["one"], record.raw["two"])
    figures["adapters_apart"] = adapters_apart(given.work / "one", given.work / "two")
    record.save(**figures)
    sizes = [record.raw[name]["world_size"] for name in runs]
    largest, first, apart = figures["largest_nats"], figures["first_nats"], figures["adapters_apart"]
    return record.finish(
        [
            (sizes == [1, PROCESSES], "one process against two", f"world sizes {sizes[0]} and {sizes[1]}"),
            (first <= FIRST_TOLERANCE_NATS, f"the first loss to {FIRST_TOLERANCE_NATS:g} nats", f"{first:.5f}"),
            (
                largest <= TOLERANCE_NATS,
                f"every loss to {TOLERANCE_NATS:g} nats",
                f"{largest:.5f}, {figures['steps']} steps",
            ),
            (apart <= ADAPTER_TOLERANCE, f"adapters at most {ADAPTER_TOLERANCE:g} apart", f"{apart:.4f}"),
        ]
    )


def look(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "train" / "manifest.json").read_text(encoding="utf-8"))
    rows = [row for row in read_jsonl(folder / "train" / "metrics.jsonl") if "loss" in row]
    losses = {str(row["step"]): row["loss"] for row in rows}
    return {"world_size": manifest["world_size"], "seconds": manifest["seconds"], "losses": losses}


def compare(one: dict[str, Any], two: dict[str, Any]) -> dict[str, float]:
    if one["losses"].keys() != two["losses"].keys():
        raise SystemExit(f"steps differ: {len(one['losses'])} against {len(two['losses'])}")
    gaps = [abs(loss - two["losses"][step]) for step, loss in one["losses"].items()]
    return {"steps": len(gaps), "first_nats": gaps[0], "largest_nats": max(gaps)}


def adapters_apart(one: Path, two: Path) -> float:
    """Distance of the B matrices, which begin at zero, over the length of one process's."""
    import torch
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two))
    names = [name for name in ours if "lora_B" in name]
    first, second = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (ours, theirs))
    return float((first - second).norm() / first.norm())


if __name__ == "__main__":
    sys.exit(main())
