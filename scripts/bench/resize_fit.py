"""The search against each single method: one cap on the parameters of the legal quickstart's base, four ways to it.

`fit` mixes depth, width and vocabulary. Alone, each of the three takes off as little as reaches the same cap: the most
layers, the widest feed-forward layers, or the most tokens. All see the same training rows and are compared by their
perplexity on the same validation rows, before any healing.

Acceptance: `fit` stays under the cap, and its perplexity is at most that of each single method.
Budget: 20 minutes on two cores. Cut short, it goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import QUICKSTART, SLLM_TUNE, Record, parser

# Of 134,515,008: 30 layers of 3,540,096 with 1,536 neurons of 1,728 each, and 49,152 tokens of 576.
MAX_PARAMETERS = 112_000_000
WAYS: dict[str, dict[str, Any]] = {
    "fit": {"kind": "fit", "max_parameters": MAX_PARAMETERS},
    "depth alone": {"kind": "prune_depth", "keep": 23},
    "width alone": {"kind": "prune_width", "intermediate_size": 1088},
    "vocabulary alone": {"kind": "trim_vocabulary", "keep_first": 8192},
}


def main() -> int:
    options = parser("resize_fit.py", __doc__)
    options.add_argument("--work", type=Path, default=Path("runs/bench/resize_fit"), help="default: %(default)s")
    given = options.parse_args()
    record = Record(given.json, {"ways": WAYS})
    ways: dict[str, Any] = record.raw.get("ways", {})
    for name, step in WAYS.items():
        if name not in ways:
            folder = given.work / name.replace(" ", "-")
            command = [*SLLM_TUNE, "resize", str(QUICKSTART), f"resize={json.dumps([step])}", "--run-dir", str(folder)]
            if status := subprocess.run(command, check=False).returncode:
                print(f"{name}: exit status {status}", file=sys.stderr)
                return 1
            ways[name] = json.loads((folder / "resize" / "steps.json").read_text(encoding="utf-8"))["steps"]
            record.save(ways=ways)
    made = {name: steps[1] for name, steps in ways.items()}
    claims = [(True, "the whole model: perplexity on validation rows, shown", f"{ways['fit'][0]['perplexity']:.3f}")]
    size = made["fit"]["parameters"]
    chosen = next(row for row in made["fit"]["tried"] if row["chosen"])
    shape = ", ".join(f"{chosen[key]:,} {key}" for key in ("layers", "intermediate_size", "tokens"))
    tried = f"{size:,}: {shape}; {len(made['fit']['tried']) - 1} tried"
    claims.append((size <= MAX_PARAMETERS, f"fit: at most {MAX_PARAMETERS:,} parameters", tried))
    for name in list(WAYS)[1:]:
        ours, alone = made["fit"]["perplexity"], made[name]["perplexity"]
        figure = f"{ours:.3f}; {alone:.3f} of {made[name]['parameters']:,}"
        claims.append((ours <= alone, f"fit at least as good as {name}", figure))
    return record.finish(claims)


if __name__ == "__main__":
    sys.exit(main())
