"""What a smaller model keeps: one base at four sizes, specialised on five tasks, beside two naive ways to a size.

The tasks are the three quickstarts' own and two public data sets, as `public_data.py` reads them (`--data`). At each
size what SHAPES names is cut and healed, then the task's own settings specialise what is left; the test items are
the same at every size. Naive is to leave out the last layers, or random ones, until as few parameters are left, and
then to heal and specialise alike: these two are run on the public data sets, at the two smaller sizes.

Items a second are those of the finished specialists, read in turn on the same items of the task, 2,000 answers in all,
so that a machine's noise falls on all of them. On the public data sets each model trains for half the epochs of
`public_data.py`: there are eight of them. What is run at 25 % on a quickstart is that field's
`downsize_quickstart.yaml`.

Acceptance, against the specialist of the whole model: at 25 % fewer parameters no loss whose interval leaves out zero;
at 40 % at least 97 % of its accuracy and 1.5 times its items a second; at 60 % at least 90 % of its accuracy, averaged
over the tasks that were run; ahead of both naive ways on each task. General ability is shown.
Budget: 15 minutes a model on two cores, an hour a task; `--task` takes one at a time. Cut short, it goes on where it
was.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import Record, add_work, parse, parser, run_command
from benchmarks.public_data import smoke_data, write_recipe
from benchmarks.public_rows import FILES
from sllm_tune import load_recipe
from sllm_tune.evaluate.statistics import compare
from sllm_tune.runs.files import read_jsonl

QUICKSTARTS = {
    "privacy_qa": Path("recipes/legal/quickstart.yaml"),
    "icd_chapter": Path("recipes/medical/quickstart.yaml"),
    "gaap_statement": Path("recipes/finance/quickstart.yaml"),
}
PUBLIC = ("banking77", "cuad_clause_type")
HEAL: dict[str, Any] = {
    "kind": "distill",
    "share": 0.5,
    "sft": {
        "learning_rate": 3e-4,
        "max_steps": 100,
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
    },
}
EPOCHS = {"banking77": 1.5, "cuad_clause_type": 1.5}
# First tokens and layers kept, of 49,152 and 30; the names are the share of the parameters that is gone.
SHAPES = {"25 %": (16384, 25), "40 %": (20000, 19), "60 %": (4096, 14)}
# Of 1,024 and 8.
SMOKE_SHAPES = {"25 %": (768, 6), "40 %": (768, 5), "60 %": (512, 4)}
SMOKE_HEAL = HEAL | {"sft": HEAL["sft"] | {"max_steps": 2, "per_device_train_batch_size": 4}}
SMOKE_TASKS = ["cuad_clause_type"]  # 17 choices, and not 77
SIZES = ("0 %", *SHAPES)
NAIVE = ("last layers", "random layers")
NAIVE_AT = ("40 %", "60 %")
LEAST_OF_WHOLE = {"40 %": 0.97, "60 %": 0.90}
LEAST_SPEEDUP = 1.5  # at 40 %
WARM_UP_ITEMS, SPEED_ANSWERS, SPEED_ROUNDS, SEED = 20, 2000, 3, 42


class Plan(NamedTuple):
    """What is cut at each size, and how it is healed."""

    shapes: dict[str, tuple[int, int]]
    heal: dict[str, Any]
    smoke: bool


def main() -> int:
    options = parser("resize_accuracy", __doc__)
    options.add_argument("--data", type=Path, help=f"holds {', '.join(FILES[task] for task in PUBLIC)}")
    options.add_argument("--task", choices=(*QUICKSTARTS, *PUBLIC), action="append", help="default: all")
    add_work(options)
    given = parse(options)
    tasks: list[str] = given.task or (SMOKE_TASKS if given.smoke else [*QUICKSTARTS, *PUBLIC])
    if given.smoke:
        given.data = smoke_data(tasks, given.work / "data")
    if given.data is None and (public := [task for task in tasks if task in PUBLIC]):
        options.error(f"{', '.join(public)}: --data must name the folder that holds the public data sets")
    plan = Plan(SMOKE_SHAPES, SMOKE_HEAL, smoke=True) if given.smoke else Plan(SHAPES, HEAL, smoke=False)
    record = Record(given, {"shapes": plan.shapes, "heal": plan.heal, "epochs": EPOCHS})
    figures: dict[str, Any] = record.raw.get("tasks", {})
    for task in tasks:
        found: dict[str, Any] = figures.setdefault(task, {"models": {}})
        folder = given.work / task
        recipe = QUICKSTARTS.get(task) or write_recipe(task, given.data / FILES[task], folder, given.smoke)
        for name in models_of(task):
            if name not in found["models"]:
                out = folder / name.replace(" ", "-")
                if status := run_one(task, name, recipe, out, plan):
                    print(f"{task}, {name}: exit status {status}", file=sys.stderr)
                    return 1
                found["models"][name] = look(task, out)
                record.save(tasks=figures)
        if "items_per_second" not in found:
            runs = {name: folder / name.replace(" ", "-") for name in models_of(task)}
            found["differences"] = differences(task, runs)
            found["items_per_second"] = speeds(task, recipe, {size: runs[size] for size in SIZES})
            record.save(tasks=figures)
    return record.finish(claims(figures))


def models_of(task: str) -> list[str]:
    naive = [f"{size} by {way}" for size in NAIVE_AT for way in NAIVE] if task in PUBLIC else []
    return [*SIZES, *naive]


def run_one(task: str, name: str, recipe: Path, out: Path, plan: Plan) -> int:
    """Make one specialist; returns the exit status of `sllm-tune run`."""
    size, _, way = name.partition(" by ")
    changes = ["evaluate.gate=null"]  # the claims below are what is asked here
    if task in EPOCHS:
        changes.append(f"train.sft.num_train_epochs={EPOCHS[task]}")
    if name != SIZES[0]:
        changes.append("evaluate.num_fewshot=0")  # the whole model's run has shown it
    if way:
        ours = out.with_name(size.replace(" ", "-"))
        base = naive_base(way, ours, load_recipe(recipe), out.with_name(f"{out.name}-base"), plan.heal)
        changes += [f"base_model.path={base.resolve()}", "base_model.sha256=null"]
    elif size in plan.shapes:
        first, layers = plan.shapes[size]
        cuts = [{"kind": "trim_vocabulary", "keep_first": first}, {"kind": "prune_depth", "keep": layers}]
        changes.append(f"resize={json.dumps([*cuts, plan.heal])}")
    return run_command("run", recipe, *changes, "--run-dir", out, smoke=plan.smoke)


def naive_base(way: str, ours: Path, recipe: Any, out: Path, heal: dict[str, Any]) -> Path:
    """The whole model without its last or random layers, as large as what our steps left, healed as ours was."""
    from transformers import AutoConfig

    from sllm_tune.model.find import Base
    from sllm_tune.model.load import load_tokenizer
    from sllm_tune.recipe.resize import Distill
    from sllm_tune.resize.cut import Cut, cut_checkpoint
    from sllm_tune.resize.tokenizer import write_tokenizer
    from sllm_tune.train.assemble import Job
    from sllm_tune.train.distil import distill

    if out.exists():
        return out
    whole = Base(section=recipe.base_model, folder=recipe.folder).checkpoint
    steps = json.loads((ours / "resize" / "steps.json").read_text(encoding="utf-8"))["steps"]
    count = AutoConfig.from_pretrained(whole).num_hidden_layers
    before, after = steps[1]["parameters"], steps[2]["parameters"]  # of the trimmed model, and without its layers
    each = (before - after) / (count - len(steps[2]["layers"]))
    kept = count - math.ceil((steps[0]["parameters"] - after) / each)
    layers = range(kept) if way == NAIVE[0] else sorted(random.Random(SEED).sample(range(count), kept))
    cut, tokenizer = Cut(layers=list(layers)), load_tokenizer(str(whole), recipe.base_model)
    student, healed = out.with_name(f"{out.name}-cut"), out.with_name(f"{out.name}-making")
    for half_made in (student, healed):
        shutil.rmtree(half_made, ignore_errors=True)
    cut_checkpoint(whole, student, cut)
    write_tokenizer(tokenizer, cut, student)
    step = Distill(**heal)
    work = out.with_name(f"{out.name}-healing")
    answers_only = step.tokens == "answer"
    where = (str(student), recipe.base_model, ours / "data", work)
    job = Job(*where, step.sft, step.lora, recipe.seed, "resize[1]", answers_only)
    distill(step, job, whole, healed)
    healed.rename(out)
    return out


def look(task: str, run: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    results = json.loads((run / "scores" / "results.json").read_text(encoding="utf-8"))
    scores = {name: found["scores"] for name, found in results["tasks"].items()}
    controls = {name: score["value"] for name, score in scores[task].items()}
    return {
        "accuracy": controls.pop("specialised"),
        "beside_it": controls,
        "n": results["tasks"][task]["n"],
        "general": {name: score["specialised"]["value"] for name, score in scores.items() if name != task},
        "parameters": results["models"]["specialised"]["parameters"],
        "train_seconds": results["seconds"]["train"],
    }


def items_of(task: str, run: Path, limit: int | None) -> Any:
    """Test items of a task; all of them, or some."""
    import yaml

    from sllm_tune.answer.items import choose_items
    from sllm_tune.tasks.build import build

    config = yaml.safe_load((run / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
    built = build(config, root=run)
    return choose_items(task, built, limit, config["metadata"].get("split_by", []), SEED)


def differences(task: str, runs: dict[str, Path]) -> dict[str, Any]:
    """Accuracy of each model minus the whole one's, on the same items."""

    def scores(run: Path) -> Any:
        rows = read_jsonl(run / "scores" / "samples" / task / "specialised.jsonl")
        return np.array([row["score"] for row in rows])

    whole, *others = runs
    groups = items_of(task, runs[whole], None).groups
    return {name: compare(scores(runs[name]), scores(runs[whole]), groups, SEED).as_dict() for name in others}


def speeds(task: str, recipe: Path, runs: dict[str, Path]) -> dict[str, float]:
    """Items a second of each run's specialist: the median of some rounds, in each of which all of them are read."""
    from sllm_tune.answer.items import score
    from sllm_tune.answer.local import PackedLM
    from sllm_tune.model.load import load_model, load_tokenizer

    base, first = load_recipe(recipe).base_model, next(iter(runs.values()))
    warm_up = items_of(task, first, WARM_UP_ITEMS)
    choices = len(warm_up.built.doc_to_choice(warm_up.docs[0]))  # an item is read once for each, or nearly
    items = items_of(task, first, SPEED_ANSWERS // choices)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(SPEED_ROUNDS):
        for name, run in runs.items():
            folder = str(run / "merged")
            lm = PackedLM(load_model(folder, base), load_tokenizer(folder, base), 16, chat_template=base.chat_template)
            score(lm, warm_up, chat_template=base.chat_template)
            started = time.monotonic()
            score(lm, items, chat_template=base.chat_template)
            seconds[name].append(time.monotonic() - started)
    return {name: len(items.docs) / statistics.median(times) for name, times in seconds.items()}


def claims(figures: dict[str, Any]) -> list[tuple[bool, str, str]]:
    made: list[tuple[bool, str, str]] = []
    shares: dict[str, list[float]] = {size: [] for size in LEAST_OF_WHOLE}
    for task, found in figures.items():
        if "items_per_second" not in found:
            continue
        models, speed = found["models"], found["items_per_second"]
        whole = models["0 %"]["accuracy"]
        for name, model in models.items():
            told = f"{model['accuracy']:.3f}, {model['parameters']:,} parameters"
            told += "".join(f", {other} {value:.3f}" for other, value in model["general"].items())
            told += f", {speed[name] / speed['0 %']:.2f} times the items/s" if name in speed else ""
            made.append((True, f"{task}, {name} fewer: shown" if name in SIZES else f"{task}, {name}: shown", told))
        lost = found["differences"]["25 %"]
        low, high = lost["ci95"]
        interval = f"{lost['value']:+.3f} ({low:+.3f} to {high:+.3f})"
        made.append((high >= 0, f"{task}: no loss at 25 % beyond the interval", interval))
        ratio = speed["40 %"] / speed["0 %"]
        made.append((ratio >= LEAST_SPEEDUP, f"{task}: {LEAST_SPEEDUP} times the items/s at 40 %", f"{ratio:.2f}"))
        for size, values in shares.items():
            values.append(models[size]["accuracy"] / whole if whole else math.nan)
        for size in NAIVE_AT if task in PUBLIC else ():
            ours, *naive = (models[name]["accuracy"] for name in (size, *(f"{size} by {w}" for w in NAIVE)))
            told = f"{ours:.3f}; " + ", ".join(f"{way} {value:.3f}" for way, value in zip(NAIVE, naive, strict=True))
            made.append((ours > max(naive), f"{task}: ahead of both naive ways at {size}", told))
    for size, least in LEAST_OF_WHOLE.items():
        if shares[size]:
            mean = statistics.mean(shares[size])
            each = ", ".join(f"{share:.1%}" for share in shares[size])
            claim = f"at {size} at least {least:.0%} of the accuracy, averaged"
            made.append((mean >= least, claim, f"{mean:.1%}: {each}"))
    return made


if __name__ == "__main__":
    sys.exit(main())
