"""Memory and time of `prepare` on a synthetic corpus of 100,000 and of 1,000,000 short rows.

Every row has a clause of its own, of 10 to 20 made-up words, and an answer. All checks of prepare run: schema, exact
and near duplicates, leaks into what is graded, splits, token counts. The quickstart's tokenizer is used.

Acceptance: the million stays under 4 GiB of memory, and ten times the rows take at most eleven times the time.
Budget: 45 minutes on two cores. Cut short, it goes on with the sizes that are missing.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import QUICKSTART, SLLM_TUNE, Record, parse, parser, tiny_base
from sllm_tune import load_recipe

MOST_GIB, MOST_RATIO = 4.0, 11.0
ROWS, SMOKE_ROWS = [100_000, 1_000_000], [40, 80]
SYLLABLES = ["ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu"]
TASK = """\
# Made for a measurement: rows of made-up words.
task: synthetic
output_type: multiple_choice
doc_to_text: "{{clause}}"
doc_to_choice: ["Yes", "No"]
doc_to_target: "{{ 0 if binding else 1 }}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, source: ../rows.jsonl, licence: none}
"""


def main() -> int:
    options = parser("prepare_scaling", __doc__)
    options.add_argument("--rows", type=int, nargs=2, default=ROWS, help="(default: %(default)s)")
    given = parse(options)
    counts = SMOKE_ROWS if given.smoke else given.rows
    record = Record(given, {"rows": counts})
    sizes: dict[str, Any] = record.raw.get("sizes", {})
    for count in counts:
        if str(count) not in sizes:
            sizes[str(count)] = measure(count, given.work / str(count), given.smoke)
            record.save(sizes=sizes)
    small, large = (sizes[str(count)] for count in counts)
    ratio, most = large["seconds"] / small["seconds"], MOST_RATIO * counts[1] / counts[0] / 10
    per_row = f"{small['seconds']:.0f} s and {large['seconds']:.0f} s, ratio {ratio:.2f}"
    return record.finish(
        [
            (
                large["peak_gib"] < MOST_GIB,
                f"{counts[1]:,} rows under {MOST_GIB:g} GiB",
                f"{large['peak_gib']:.2f} GiB",
            ),
            (ratio <= most, f"time grows at most {most:g} times", per_row),
        ]
    )


def measure(count: int, folder: Path, smoke: bool) -> dict[str, float]:
    """Seconds and peak memory of `sllm-tune prepare` on `count` rows, in a process of its own."""
    recipe = write_domain(folder / "synthetic", count, smoke)
    command = [*SLLM_TUNE, "prepare", str(recipe), "--run-dir", str(folder / "run")]
    print(f"{count:,} rows", file=sys.stderr, flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        raise SystemExit(f"prepare failed on {count:,} rows (exit status {os.waitstatus_to_exitcode(status)})")
    shutil.rmtree(folder)
    return {"seconds": seconds, "peak_gib": usage.ru_maxrss / 2**20}


def write_domain(folder: Path, count: int, smoke: bool) -> Path:
    """A recipe with its task and `count` rows, new in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "synthetic.yaml").write_text(TASK)
    draw = random.Random(count)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))) for _ in range(20_000)]
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            clause = " ".join(draw.choices(words, k=draw.randint(10, 20)))
            file.write(json.dumps({"clause": clause, "binding": number % 2 == 0}) + "\n")
    base = load_recipe(QUICKSTART).base_model.model_dump(exclude_none=True)
    if smoke:
        base |= {"path": str(tiny_base(words[:500])), "sha256": None}
    recipe: dict[str, Any] = {
        "name": "synthetic",
        "domain": "synthetic",
        "base_model": base,
        "data": {"tasks": ["synthetic"]},
        "train": {},
        "evaluate": {"domain": ["synthetic"]},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


if __name__ == "__main__":
    sys.exit(main())
