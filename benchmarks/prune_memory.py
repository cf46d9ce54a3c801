"""Memory of pruning a model that the memory does not hold: a synthetic one of 2 GB in 8 shards.

A process imports Python's libraries and then enters a control group whose limit is the bytes of the largest shard and a
fifth more; what it needs beyond that ends it. There the model's layers are ranked by Block Influence on calibration
text, a quarter of them is cut, and the smaller checkpoint is written. Pages of files count for the limit too, but the
kernel drops them when it needs room. Needs Linux and the right to make a control group (root).

Acceptance: the process ends well; the smaller checkpoint has three quarters of the layers, and each of its tensors is
the one that was kept.
Budget: 5 minutes and 4 GB of disk on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Record, parse, parser

SHARDS, MARGIN = 8, 1.2
SMOKE_LIMIT_BYTES = 2**31  # of a tiny model's shard no process is made
SHAPE = {
    "num_hidden_layers": 20,
    "hidden_size": 2048,
    "intermediate_size": 5888,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
}
SMOKE_SHAPE = SHAPE | {
    "num_hidden_layers": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def main() -> int:
    options = parser("prune_memory", __doc__)
    options.add_argument(
        "--work", type=Path, metavar="FOLDER", help="holds the model (default: beside the raw figures)"
    )
    options.add_argument("--child", type=Path, metavar="FOLDER", help="the limited process; started by this module")
    given = parse(options)
    if given.child:
        print(json.dumps(prune(given.child, given.smoke)))
        return 0
    work, shape = given.work.parent, SMOKE_SHAPE if given.smoke else SHAPE  # the model is the same for any code
    kept = shape["num_hidden_layers"] * 3 // 4
    record = Record(given, {"shape": shape, "kept": kept, "margin": MARGIN})
    if not (work / "whole" / "model.safetensors.index.json").exists():
        make(work / "whole", shape)
    shutil.rmtree(work / "cut", ignore_errors=True)
    child = [sys.executable, "-m", "benchmarks.prune_memory", "--child", str(work), *["--smoke"] * given.smoke]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
    sizes = [file.stat().st_size for file in sorted((work / "whole").glob("*.safetensors"))]
    figures: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    record.save(shard_bytes=sizes, exit_status=done.returncode, **figures)
    shutil.rmtree(work / "cut", ignore_errors=True)
    used = f"{figures['used_bytes'] / max(sizes):.2f} of its {max(sizes) / 1e6:.0f} MB" if figures else "killed"
    right = f"{figures.get('layers')} layers, {figures.get('different')} tensors differ"
    return record.finish(
        [
            (len(sizes) == SHARDS, f"a model in {SHARDS} shards", f"{len(sizes)}, {sum(sizes) / 1e9:.2f} GB"),
            (done.returncode == 0, f"pruned within {MARGIN:g} of the largest shard", used),
            (figures.get("layers") == kept and figures.get("different") == 0, "the right layers, whole", right),
        ]
    )


def make(folder: Path, shape: dict[str, int]) -> None:
    """The whole model, layer by layer, so that making it needs no memory either."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(folder, ignore_errors=True)
    config: Any = LlamaConfig(**shape, tie_word_embeddings=True)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=int(size / SHARDS * 1.04))


def prune(work: Path, smoke: bool) -> dict[str, Any]:
    """Rank, cut and write under the limit; then, without it, compare every tensor with the one it came from."""
    import torch

    from sllm_tune.model.load import fits_memory, load_for_reading
    from sllm_tune.recipe.base_model import BaseModelSection
    from sllm_tune.resize.cut import cut_checkpoint
    from sllm_tune.resize.depth import prune_depth

    whole = work / "whole"
    config = json.loads((whole / "config.json").read_text())
    base = BaseModelSection(path=str(whole), chat_template=False)
    (torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)).sum()  # threads, kernels
    largest = max(file.stat().st_size for file in whole.glob("*.safetensors"))
    own = anonymous_bytes()
    peak = [own]
    enter_group(SMOKE_LIMIT_BYTES if smoke else int(MARGIN * largest), required=not smoke)
    threading.Thread(target=watch, args=(peak,), daemon=True).start()
    in_memory = fits_memory(str(whole))
    texts = [
        torch.randint(config["vocab_size"], (48,), generator=torch.Generator().manual_seed(i)).tolist()
        for i in range(2)
    ]
    cut, _ = prune_depth(load_for_reading(str(whole), base), texts, config["num_hidden_layers"] * 3 // 4)
    cut_checkpoint(whole, work / "cut", cut)
    kept = list(cut.layers or [])
    return {
        "own_bytes": own,
        "used_bytes": peak[0] - own,
        "in_memory": in_memory,
        "layers": json.loads((work / "cut" / "config.json").read_text())["num_hidden_layers"],
        "different": differing(whole, work / "cut", kept),
    }


def enter_group(limit_bytes: int, *, required: bool) -> None:
    """A control group of this process alone; what it holds already stays counted where it was.

    Where there is no right to make one, a smoke run goes on without.
    """
    try:
        limit_to(limit_bytes)
    except OSError as error:
        if required:
            raise
        print(f"no control group: {error}", file=sys.stderr)


def limit_to(limit_bytes: int) -> None:
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = next((path for _, names, path in lines if "memory" in names.split(",")), None)
    parent = Path("/sys/fs/cgroup/memory" + first) if first else Path("/sys/fs/cgroup" + lines[0][2])
    group = parent / f"prune_memory-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit_bytes))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def anonymous_bytes() -> int:
    """Resident memory of this process that is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watch(peak: list[int]) -> None:
    """The kernel keeps no peak of it, so a thread looks fifty times a second."""
    while True:
        peak[0] = max(peak[0], anonymous_bytes())
        time.sleep(0.02)


def differing(whole: Path, cut: Path, kept: list[int]) -> int:
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, Path]:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        return {name: folder / file for name, file in index["weight_map"].items()}

    before, after = tensors(whole), tensors(cut)
    count = 0
    for name, file in after.items():
        parts = name.split(".")
        if "layers" in parts:
            at = parts.index("layers") + 1
            parts[at] = str(kept[int(parts[at])])
        old = ".".join(parts)
        with safe_open(file, framework="pt") as new, safe_open(before[old], framework="pt") as source:
            count += not bool((new.get_tensor(name) == source.get_tensor(old)).all())
    return count


if __name__ == "__main__":
    sys.exit(main())
