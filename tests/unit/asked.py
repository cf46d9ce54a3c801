"""A finished run with two tasks of its domain, trained until its answers mean something: choices, and written text."""

import json
from pathlib import Path
from typing import Any

from conftest import write_rows

CHOICE_TASK = """\
task: binding
output_type: multiple_choice
description: "Say how {{party}} is bound."
doc_to_text: "{{question}} {{clause | trim}}{{ ' ' ~ note if note is defined and note else '' }}"
doc_to_choice: [binding, binding after notice, free]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata:
  source: ../../data/clauses.jsonl
  split: {train: 0.5, validation: 0.1, test: 0.4}
"""
WRITTEN_TASK = """\
task: party
output_type: generate_until
doc_to_text: clause
doc_to_target: party
generation_kwargs: {until: ["###"], max_gen_toks: 8, do_sample: false}
filter_list: [{name: low, filter: [{function: lowercase}, {function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata:
  source: ../../data/clauses.jsonl
  split: {train: 0.5, validation: 0.1, test: 0.4}
"""
RECIPE = """\
name: asked
domain: legal
base_model: {{path: {base}}}
data: {{tasks: [binding, party], max_length: 256, allow_leaks: [binding, party]}}
train:
  lora: {{r: 8, lora_alpha: 16, target_modules: all-linear}}
  sft: {{learning_rate: 0.01, max_steps: 100, per_device_train_batch_size: 8, lr_scheduler_type: cosine}}
evaluate: {{domain: [binding, party], general: [], num_fewshot: 0, batch_size: 2}}
"""
LABELS = {"shall": "binding", "shall, once told,": "binding after notice", "may": "free"}


def rows() -> list[dict[str, Any]]:
    return [
        {"question": f"Section {n}.", "clause": f"The {party} {verb} pay.", "party": party, "label": label}
        for n in range(12)
        for party in ("tenant", "landlord", "임차인")
        for verb, label in LABELS.items()
    ]


def finished_run(folder: Path, base: Path) -> Path:
    """Its run folder; the rows that the tasks were made of are in `folder/recipes/data/clauses.jsonl`."""
    from sllm_tune import load_recipe, pipeline

    domain = folder / "recipes" / "legal"
    (domain / "tasks").mkdir(parents=True)
    (folder / "recipes" / "data").mkdir()
    (domain / "tasks" / "binding.yaml").write_text(CHOICE_TASK)
    (domain / "tasks" / "party.yaml").write_text(WRITTEN_TASK)
    (domain / "asked.yaml").write_text(RECIPE.format(base=base))
    write_rows(folder / "recipes" / "data" / "clauses.jsonl", rows())
    pipeline.run(load_recipe(domain / "asked.yaml"), folder / "run")
    return folder / "run"


def scored(run: Path, task: str) -> dict[str, Any]:
    """What was scored of each item: for a choice its text."""
    import pyarrow.parquet as pq

    lines = (run / "scores" / "samples" / task / "specialised.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["id"]: row["prediction"] for row in map(json.loads, lines)}
    docs = {doc["id"]: doc for doc in pq.read_table(run / "tasks" / task / "test.parquet").to_pylist()}
    return {name: docs[name]["choices"][one] if isinstance(one, int) else one for name, one in found.items()}
