"""Vocabulary trimming alone: what it takes off, and what it leaves as it was.

The finance quickstart runs with `trim_vocabulary` as its only step; compared with a finished run of the quickstart as
it is. Then the base and the trimmed base, neither specialised, answer those items of the general tasks whose every
token was kept, in float32: bfloat16 rounds a product with a smaller matrix otherwise. Log-probabilities are taken over
fewer tokens after a trim, so where a choice has several tokens its score may move a little; the logits of kept tokens
do not. To tell the two apart, the base answers once more with the logits of the tokens that went at minus infinity.

Acceptance: at least 12 % fewer parameters; the specialist's accuracy within the other's interval; the same answers to
general items whose tokens were all kept.
Budget: 20 minutes on two cores. Cut short, it goes on where it was.
"""

from __future__ import annotations

import json
import operator
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import Record, add_work, parse, parser, run_command

RECIPE = Path("recipes/finance/quickstart.yaml")
STEP = {"kind": "trim_vocabulary", "keep_first": 16384}
LEAST_FEWER = 0.12


def main() -> int:
    options = parser("resize_vocabulary", __doc__)
    add_work(options)
    options.add_argument("--whole", type=Path, default=Path("runs/finance-quickstart"), help="default: %(default)s")
    given = parse(options)
    record = Record(given, {"step": STEP})
    whole_run: Path = given.work / "whole" if given.smoke else given.whole
    trimmed_run: Path = given.work / "trimmed"
    for folder, resize in ((whole_run, "[]"), (trimmed_run, json.dumps([STEP]))):
        # No gate: the claims below are what is asked here.
        asked = ["evaluate.gate=null", f"resize={resize}", *["--smoke"] * given.smoke, "--run-dir", folder]
        if status := run_command("run", RECIPE, *asked, smoke=given.smoke):
            print(f"{folder}: exit status {status}", file=sys.stderr)
            return 1
    whole, trimmed = (json.loads((f / "scores" / "results.json").read_text()) for f in (whole_run, trimmed_run))
    sizes = [results["models"]["specialised"]["parameters"] for results in (whole, trimmed)]
    scores = [results["tasks"]["gaap_statement"]["scores"]["specialised"] for results in (whole, trimmed)]
    if "general" not in record.raw:
        record.save(general=general_answers(whole_run, trimmed_run, given.smoke))
    fewer, general = 1 - sizes[1] / sizes[0], record.raw["general"]
    record.save(fewer=fewer, parameters=sizes, accuracy=scores)
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


def general_answers(whole: Path, trimmed: Path, smoke: bool) -> dict[str, int]:
    """Items of the general tasks, those whose every token was kept, and those of them answered alike, in float32."""
    import torch
    import yaml

    from sllm_tune import load_recipe
    from sllm_tune.answer.items import choose_items, score
    from sllm_tune.answer.local import PackedLM
    from sllm_tune.model.find import find_base
    from sllm_tune.model.load import load_model, load_tokenizer
    from sllm_tune.smoke import smoke as tiny
    from sllm_tune.tasks.build import build

    recipe = tiny(load_recipe(RECIPE)) if smoke else load_recipe(RECIPE)
    paths = {"trimmed": str(trimmed / "model"), "whole": find_base(recipe.base_model, recipe.folder)}
    paths["masked"] = paths["whole"]
    lms: dict[str, Any] = {}
    for name, path in paths.items():
        model = load_model(path, recipe.base_model, dtype=torch.float32)
        tokenizer, templated = load_tokenizer(path, recipe.base_model), recipe.base_model.chat_template
        lms[name] = PackedLM(model, tokenizer, recipe.evaluate.batch_size, chat_template=templated)
    lms["masked"].model.lm_head.register_forward_hook(without(lms["whole"].tokenizer, lms["trimmed"].tokenizer))
    found = {"items": 0, "kept": 0, "same_as_whole": 0, "same_as_masked": 0}
    for task in recipe.evaluate.general:
        config = yaml.safe_load((whole / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
        graded = choose_items(task, build(config, root=whole), None, [], recipe.seed)
        found["items"] += len(graded.docs)
        graded = only_kept(graded, lms["whole"], lms["trimmed"])
        found["kept"] += len(graded.docs)
        answers = {
            name: [row["prediction"] for row in score(lm, graded, chat_template=True)] for name, lm in lms.items()
        }
        for other in ("whole", "masked"):
            found[f"same_as_{other}"] += sum(map(operator.eq, answers["trimmed"], answers[other]))
    return found


def only_kept(graded: Any, whole: Any, trimmed: Any) -> Any:
    """The task's items that both models read as the same tokens, prompt and every choice."""
    read = [tokens_of(graded, lm) for lm in (whole, trimmed)]
    places = [place for place, (ours, theirs) in enumerate(zip(*read, strict=True)) if ours == theirs]
    docs, indices = ([of[place] for place in places] for of in (graded.docs, graded.indices))
    return replace(graded, docs=docs, indices=indices)


def tokens_of(graded: Any, lm: Any) -> list[list[list[str]]]:
    """Each item's requests as the tokens that the model is shown."""
    graded.built.build_all_requests(
        samples=graded.indices, apply_chat_template=True, chat_template=lm.apply_chat_template
    )
    items: dict[int, list[list[str]]] = {index: [] for index in graded.indices}
    for instance in graded.built.instances:
        context, continuation = lm._encode_pair(*instance.args)
        items[instance.doc_id].append(lm.tokenizer.convert_ids_to_tokens(context + continuation))
    return list(items.values())


def without(whole: Any, trimmed: Any) -> Any:
    """A hook on the whole model's head: tokens that the trimmed vocabulary lacks have no probability."""
    import torch

    known = trimmed.get_vocab()
    gone = torch.tensor([place for token, place in whole.get_vocab().items() if token not in known])
    return lambda head, inputs, logits: logits.index_fill(-1, gone, -torch.inf)


if __name__ == "__main__":
    sys.exit(main())
