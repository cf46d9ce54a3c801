"""The search against each single method: two caps on the parameters of the legal quickstart's base, the ways to each.

`fit` mixes depth, width and vocabulary. Alone, each of the three takes off as little as reaches the same cap: the most
layers, the widest feed-forward layers, or the most tokens. The lower cap is out of reach of the vocabulary alone, whose
embeddings are 28 of the 134 million parameters. All see the same training rows and are compared by their perplexity on
the same validation rows, before any healing; over fewer tokens it is a little lower by itself.

Acceptance: `fit` stays under each cap, and its perplexity is at most that of each single method.
Budget: 20 minutes on two cores. Cut short, it goes on where it was.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.common import QUICKSTART, Record, add_work, parse, parser, run_command

# Of 134,515,008: 30 layers of 3,540,096 with 1,536 neurons of 1,728 each, and 49,152 tokens of 576.
CAPS: dict[int, dict[str, dict[str, Any]]] = {
    112_000_000: {
        "depth alone": {"kind": "prune_depth", "keep": 23},
        "width alone": {"kind": "prune_width", "intermediate_size": 1088},
        "vocabulary alone": {"kind": "trim_vocabulary", "keep_first": 8192},
    },
    99_200_000: {
        "depth alone": {"kind": "prune_depth", "keep": 20},
        "width alone": {"kind": "prune_width", "intermediate_size": 848},
    },
}


def main() -> int:
    options = parser("resize_fit", __doc__)
    add_work(options)
    given = parse(options)
    record = Record(given, {"caps": CAPS})
    ways: dict[str, Any] = record.raw.get("ways", {})
    claims: list[tuple[bool, str, str]] = []
    for cap, alone in list(CAPS.items())[: 1 if given.smoke else None]:  # tiny, both caps are the same
        made = {}
        for name, step in {"fit": {"kind": "fit", "max_parameters": cap}, **alone}.items():
            key = f"{name}, {cap}"
            if key not in ways:
                folder = given.work / key.replace(", ", "-").replace(" ", "-")
                steps = f"resize={json.dumps([step])}"
                asked = [steps, *["--smoke"] * given.smoke, "--run-dir", folder]
                if status := run_command("resize", QUICKSTART, *asked, smoke=given.smoke):
                    print(f"{key}: exit status {status}", file=sys.stderr)
                    return 1
                ways[key] = json.loads((folder / "resize" / "steps.json").read_text(encoding="utf-8"))["steps"]
                record.save(ways=ways)
            made[name] = ways[key][1]
        claims += compared(cap, made.pop("fit"), made)
    whole = next(iter(ways.values()))[0]["perplexity"]
    return record.finish([(True, "the whole model: perplexity on validation rows, shown", f"{whole:.3f}"), *claims])


def compared(cap: int, fit: dict[str, Any], alone: dict[str, dict[str, Any]]) -> list[tuple[bool, str, str]]:
    size, ours = fit["parameters"], fit["perplexity"]
    chosen = next(row for row in fit["tried"] if row["chosen"])
    shape = ", ".join(f"{chosen[key]:,} {key}" for key in ("layers", "intermediate_size", "tokens"))
    made = [(size <= cap, f"fit: at most {cap:,} parameters", f"{size:,}: {shape}; {len(fit['tried']) - 1} tried")]
    for name, step in alone.items():
        figure = f"{ours:.3f}; {step['perplexity']:.3f} of {step['parameters']:,}"
        made.append((ours <= step["perplexity"], f"{cap:,}: fit at least as good as {name}", figure))
    return made


if __name__ == "__main__":
    sys.exit(main())
