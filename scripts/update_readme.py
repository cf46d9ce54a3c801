"""Write a finished run's figures into README.md: python scripts/update_readme.py runs/legal-quickstart."""

import json
import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
NAMES = {
    "specialised": "**specialist**",
    "base": "base model",
    "base_fewshot": "base model, 5 examples",
    "tfidf": "TF-IDF baseline",
    "majority": "majority answer",
}


def figures(results: dict[str, Any]) -> str:
    lines = [f"Made on {results['hardware']}.", ""]
    lines += ["| task | model | accuracy | 95 % interval | specialist minus this | p |", "|---|---|---|---|---|---|"]
    for task, entry in results["tasks"].items():
        for model, name in NAMES.items():
            if model not in entry["scores"]:
                continue
            score, difference = entry["scores"][model], entry["differences"].get(f"specialised vs {model}")
            row = [f"{task}, {entry['n']} items", name, f"{score['value']:.3f}", _interval(score)]
            p = "" if difference is None else f"{difference['p_value']:.2g}"
            row += ["" if difference is None else f"{difference['value']:+.3f} ({_interval(difference)})", p]
            lines.append(f"| {' | '.join(row)} |")
    lost, agreement = results["forgetting"], results["merge_agreement"]
    lines += ["", f"Forgetting {lost['value']:+.3f} ({_interval(lost)}). Of {agreement['n']} validation answers, "]
    lines[-1] += f"{agreement['flipped']} differ between adapter and merged model."
    return "\n".join(lines)


def _interval(score: dict[str, Any]) -> str:
    return f"{score['ci95'][0]:.3f} to {score['ci95'][1]:.3f}"


if __name__ == "__main__":
    results = json.loads((Path(sys.argv[1]) / "scores" / "results.json").read_text(encoding="utf-8"))
    text, n = re.subn(
        r"(<!-- figures -->\n).*?(\n<!-- end -->)",
        lambda found: found[1] + figures(results) + found[2],
        README.read_text(encoding="utf-8"),
        flags=re.S,
    )
    if n != 1:
        sys.exit(f"{README}: expected one pair of <!-- figures --> and <!-- end -->, found {n}")
    README.write_text(text, encoding="utf-8")
    print(README)
