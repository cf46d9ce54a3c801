"""Vocabulary trimming alone: what it takes off, and what it leaves as it was.

The finance quickstart runs with `trim_vocabulary` as its only step; compared with a finished run of the quickstart as
it is. Then the base and the trimmed base, neither specialised, answer the general tasks, and their answers to the items
whose every token was kept are compared. Log-probabilities are taken over fewer tokens after a trim, so where a choice
has several tokens its score may move a little; the logits of kept tokens do not. To tell the two apart, the base
answers once more with the logits of the tokens that went at minus infinity.

Acceptance: at least 12 % fewer parameters; the specialist's accuracy within the other's interval; the same answers to
general items whose tokens were all kept.
Budget: 20 minutes on two cores. Cut short, it goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import SLLM_TUNE, Record, parser

RECIPE = Path("recipes/finance/quickstart.yaml")
STEP = {"kind": "trim_vocabulary", "keep_first": 16384}
LEAST_FEWER = 0.12


def main() -> int:
    options = parser("resize_vocabulary.py", __doc__)
    options.add_argument("--work", type=Path, default=Path("runs/bench/resize_vocabulary"), help="default: %(default)s")
    options.add_argument("--whole", type=Path, default=Path("runs/finance-quickstart"), help="default: %(default)s")
    given = options.parse_args()
    record = Record(given.json, {"step": STEP})
    for folder, resize in ((given.whole, "[]"), (given.work, json.dumps([STEP]))):
        # No gate: the claims below are what is asked here.
        command = [*SLLM_TUNE, "run", str(RECIPE), "evaluate.gate=null", f"resize={resize}", "--run-dir", str(folder)]
        if status := subprocess.run(command, check=False).returncode:
            print(f"{folder}: exit status {status}", file=sys.stderr)
            return 1
    whole, trimmed = (json.loads((f / "scores" / "results.json").read_text()) for f in (given.whole, given.work))
    sizes = [results["models"]["specialised"]["parameters"] for results in (whole, trimmed)]
    scores = [results["tasks"]["gaap_statement"]["scores"]["specialised"] for results in (whole, trimmed)]
    if "general" not in record.raw:
        record.save(general=general_answers(given.whole, given.work))
    fewer, general = 1 - sizes[1] / sizes[0], record.raw["general"]
    record.save(parameters=sizes, accuracy=scores)
    low, high = scores[0]["ci95"]
    kept = f"of {general['kept']}, of {general['items']} items in all"
    return record.finish(
        [
            (fewer >= LEAST_FEWER, f"at least {LEAST_FEWER:.0%} fewer parameters", f"{fewer:.1%} ({sizes[1]:,})"),
            (
                low <= scores[1]["value"] <= high,
                "the specialist's accuracy within the other's interval",
                f"{scores[1]['value']:.3f}; {scores[0]['value']:.3f} ({low:.3f} to {high:.3f})",
            ),
            (
                general["same_as_whole"] == general["kept"],
                "the same answers where every token was kept",
                f"{general['same_as_whole']} {kept}",
            ),
            (
                general["same_as_masked"] == general["kept"],
                "and with the other tokens' logits at minus infinity",
                f"{general['same_as_masked']} {kept}",
            ),
        ]
    )


def general_answers(whole: Path, trimmed: Path) -> dict[str, int]:
    """Items of the general tasks, those whose tokens were all kept, and those of them answered alike."""
    import yaml

    from sllm_tune import load_recipe
    from sllm_tune.evaluate.samples import choose_items, score
    from sllm_tune.evaluate.scorer import PackedLM
    from sllm_tune.model import find_base, load_model, load_tokenizer
    from sllm_tune.tasks import build

    recipe = load_recipe(RECIPE)
    base, small = find_base(recipe.base_model, recipe.folder), str(trimmed / "model")
    tokenizers: list[Any] = [load_tokenizer(path, recipe.base_model) for path in (base, small)]
    graded: list[Any] = []
    kept: list[bool] = []
    for task in recipe.evaluate.general:
        config = yaml.safe_load((whole / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
        built = build(config, root=whole, cache_dir=whole / ".work" / "cache")
        graded.append(choose_items(task, built, recipe.evaluate.limit_general, [], recipe.seed))
        kept += [same_tokens(texts(built, doc), tokenizers) for doc in graded[-1].docs]
    answers: dict[str, list[Any]] = {}
    for name in ("trimmed", "whole", "masked"):
        model = load_model(small if name == "trimmed" else base, recipe.base_model)
        if name == "masked":
            model.lm_head.register_forward_hook(without(*tokenizers))
        lm = PackedLM(model, tokenizers[name == "trimmed"], recipe.evaluate.batch_size)
        answers[name] = [row["prediction"] for items in graded for row in score(lm, items, chat_template=True)]

    def same(other: str) -> int:
        pairs = zip(kept, answers["trimmed"], answers[other], strict=True)
        return sum(flag and ours == theirs for flag, ours, theirs in pairs)

    return {
        "items": len(kept),
        "kept": sum(kept),
        "same_as_whole": same("whole"),
        "same_as_masked": same("masked"),
    }


def without(whole: Any, trimmed: Any) -> Any:
    """A hook on the whole model's head: tokens that the trimmed vocabulary lacks have no probability."""
    import torch

    known = trimmed.get_vocab()
    gone = torch.tensor([place for token, place in whole.get_vocab().items() if token not in known])
    return lambda head, inputs, logits: logits.index_fill(-1, gone, -torch.inf)


def texts(built: Any, doc: dict[str, Any]) -> list[str]:
    return [
        str(built.doc_to_text(doc)),
        *(f" {choice}" for choice in built.doc_to_choice(doc)),
        *built.doc_to_choice(doc),
    ]


def same_tokens(shown: list[str], tokenizers: list[Any]) -> bool:
    whole, trimmed = ([made.tokenize(text) for text in shown] for made in tokenizers)
    return bool(whole == trimmed)


if __name__ == "__main__":
    sys.exit(main())
