"""Does `lm_eval` itself, on a finished run's own task file and merged weights, give the answers that the report counts?

Runs the harness's command line in the run folder and compares each test item's answer with `scores/samples/`. Items
that differ are asked again of our scorer, to show by how many nats each of the two prefers its answer.

Acceptance: the same answer on at least 99.5 % of the items.
Budget: 5 minutes for the quickstart's 724 items on two cores. What `lm_eval` wrote is kept and not asked for again; cut
short, that one command starts again.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Record, call, finished_run, parse, parser
from sllm_tune.runs.files import read_jsonl, sha256

AGREEMENT = 0.995


def main() -> int:
    options = parser("lm_eval_agreement", __doc__)
    options.add_argument("--run-dir", type=Path, default=Path("runs/legal-quickstart"), help="default: %(default)s")
    options.add_argument("--task", default="privacy_qa", help="default: %(default)s")
    options.add_argument("--limit", type=int, help="only the first items, to try this script (default: all)")
    given = parse(options)
    run_dir = finished_run(options, given)
    folder = run_dir.absolute()
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    weights = sha256(folder / "merged" / "model.safetensors")
    record = Record(given, {"task": given.task, "limit": given.limit, "merged_sha256": weights})
    out = given.json.absolute().with_suffix("") / f"{weights[:16]}-{given.limit or 'all'}"
    command = lm_eval_command(folder, recipe, given.task, out, given.limit)
    shown = f"cd {shlex.quote(str(run_dir))} && HF_HUB_OFFLINE=1 {shlex.join(command)}"
    print(shown, flush=True)
    if not samples(out, given.task):
        # Its own cache of data sets: a stale one would be read for the run folder's relative file names.
        alone = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "datasets")}
        log = out / "lm_eval.log"
        if status := call([sys.executable, "-m", *command], log, cwd=folder, env=alone):
            print(f"lm_eval ended with exit status {status}; see {log}", file=sys.stderr)
            return 1
    figures = compare(samples(out, given.task), folder, given.task)
    if figures["differing"]:
        ask_again(figures["differing"], folder, recipe, given.task)
    record.save(command=shown, tasks={given.task: figures})
    for row in figures["differing"]:
        margins = f"lm_eval by {row['lm_eval']['margin']:.3f} nats, ours by {row['ours']['margin']:.3f}"
        print(f"item {row['item']} ({row['id']}): {margins}")
    share = f"{figures['agreement']:.4f} of {figures['items']} items"
    return record.finish([(figures["agreement"] >= AGREEMENT, f"the same answer on at least {AGREEMENT:.1%}", share)])


def lm_eval_command(folder: Path, recipe: dict[str, Any], task: str, out: Path, limit: int | None) -> list[str]:
    from sllm_tune.model.load import scoring_dtype
    from sllm_tune.recipe.base_model import BaseModelSection

    dtype = str(scoring_dtype(str(folder / "merged"), BaseModelSection(**recipe["base_model"]))).removeprefix("torch.")
    arguments = f"pretrained=merged,dtype={dtype},softmax_dtype=float32"
    command = ["lm_eval", "run", "--model", "hf", "--model_args", arguments, "--tasks", task, "--include_path", "tasks"]
    command += ["--apply_chat_template"] if recipe["base_model"]["chat_template"] else []
    command += ["--batch_size", str(recipe["evaluate"]["batch_size"]), "--device", "cpu"]
    command += ["--limit", str(limit)] if limit else []
    return [*command, "--log_samples", "--output_path", str(out)]


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    """What the last finished command logged, in the order of the test rows; empty before it has finished."""
    found = sorted(out.glob(f"*/samples_{task}_*.jsonl"))
    return sorted(read_jsonl(found[-1]), key=lambda row: row["doc_id"]) if found else []


def compare(theirs: list[dict[str, Any]], folder: Path, task: str) -> dict[str, Any]:
    ours = read_jsonl(folder / "scores" / "samples" / task / "specialised.jsonl")[: len(theirs)]
    differing: list[dict[str, Any]] = []
    for row, kept in zip(theirs, ours, strict=True):
        if row["doc"]["id"] != kept["id"]:
            raise ValueError(f"item {row['doc_id']} is {row['doc']['id']} for lm_eval and {kept['id']} for us")
        nats = [float(response[0]) for response in row["filtered_resps"]]
        if (answer := nats.index(max(nats))) != kept["prediction"]:
            asked = {"answer": answer, "margin": margin(nats, answer), "log_probabilities": nats}
            differing.append({"item": row["doc_id"], "id": kept["id"], "lm_eval": asked, "ours": kept})
    return {"agreement": 1 - len(differing) / len(theirs), "items": len(theirs), "differing": differing}


def ask_again(differing: list[dict[str, Any]], folder: Path, recipe: dict[str, Any], task: str) -> None:
    """Our scorer's log-probabilities of the differing items; rows it is batched with can move them by a rounding."""
    import yaml

    from sllm_tune.answer.local import PackedLM
    from sllm_tune.model.load import load_model, load_tokenizer, scoring_dtype
    from sllm_tune.recipe.base_model import BaseModelSection
    from sllm_tune.tasks.build import build

    base, merged = BaseModelSection(**recipe["base_model"]), str(folder / "merged")
    model = load_model(merged, base, dtype=scoring_dtype(merged, base))
    lm = PackedLM(
        model, load_tokenizer(merged, base), recipe["evaluate"]["batch_size"], chat_template=base.chat_template
    )
    config = yaml.safe_load((folder / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
    built = build(config, root=folder)
    template = lm.apply_chat_template if base.chat_template else None
    built.build_all_requests(
        samples=[row["item"] for row in differing], apply_chat_template=base.chat_template, chat_template=template
    )
    scored = iter(lm.loglikelihood(built.instances, disable_tqdm=True))
    for row in differing:
        nats = [next(scored)[0] for _ in row["lm_eval"]["log_probabilities"]]
        kept = row["ours"]["prediction"]
        row["ours"] = {"answer": kept, "margin": margin(nats, kept), "log_probabilities": nats}


def margin(nats: list[float], answer: int) -> float:
    """By how many nats `answer` is ahead of the best other choice; negative where it is behind."""
    return nats[answer] - max(value for i, value in enumerate(nats) if i != answer)


if __name__ == "__main__":
    sys.exit(main())
