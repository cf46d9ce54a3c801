"""A small finished run, made in seconds without the pipeline: a strong adapter, merged, one task with its scores."""

from pathlib import Path
from typing import Any

import torch
import yaml

from sllm_tune.answer.items import choose_items, samples_path, score
from sllm_tune.answer.local import PackedLM
from sllm_tune.evaluate.schema import Results
from sllm_tune.model.lineage import ADAPTER_FILE, base_sha256
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.model.merge import merge
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.runs.files import write_json, write_jsonl
from sllm_tune.tasks.build import build, read_resolved, resolve, write_table
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.find import TaskFile

CHOICES = ["binding", "not binding", "an option", "void", "권리"]


def section(path: Path) -> BaseModelSection:
    return BaseModelSection(path=str(path))


def random_adapter(base: Path, out: Path, *, seed: int = 1, **options: Any) -> Path:
    """A random adapter, strong enough to change most answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **options}
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", **settings),
    )
    adapted.save_pretrained(out)
    write_json(
        out / ADAPTER_FILE, {"base": "tiny", "base_sha256": base_sha256(str(base), None), "train_sha256": "0" * 64}
    )
    return out


def finished_run(folder: Path, base: Path, *, name: str = "tiny run", **options: Any) -> Path:
    """A run folder as `evaluate` leaves it, as far as an export reads it."""
    adapter = random_adapter(base, folder / "adapter", **options)
    merge(str(base), section(base), adapter, folder / "merged")
    write_task(folder)
    tokenizer = load_tokenizer(str(folder / "merged"), section(folder / "merged"))
    lm = PackedLM(load_model(str(folder / "merged"), section(folder / "merged")), tokenizer, 8, chat_template=True)
    task = choose_items("clauses", build(read_resolved(folder / "tasks" / "clauses.yaml"), root=folder), None, [], 0)
    rows = score(lm, task, chat_template=True)
    write_jsonl(samples_path(folder / "scores", "clauses", "specialised"), rows)
    value = sum(row["score"] for row in rows) / len(rows)
    results_of(name, len(rows), value).write(folder / "scores" / "results.json")
    sections = {"base_model": {"path": str(base), "chat_template": True}, "data": {}, "train": {}, "evaluate": {}}
    write_json(folder / "recipe.json", {"name": name, **sections})
    encoder = Encoder(tokenizer, chat_template=True)
    asked = [[{"role": "user", "content": f"Clause {n}. Is it binding?"}] for n in range(20)]
    written = [{"context": encoder.render(one), "target": CHOICES[n % 5]} for n, one in enumerate(asked)]
    write_jsonl(folder / "data" / "train.jsonl", written)
    return folder


def results_of(name: str, n: int, value: float) -> Results:
    """Of one task that the specialist answers, a little better than its base."""
    found, less = ({"value": mean, "ci95": [mean - 0.02, mean + 0.02]} for mean in (value, value - 0.01))
    gain = {"value": 0.01, "ci95": [-0.01, 0.03], "p_value": 0.5}
    task = {"kind": "domain", "metric": "acc", "higher_is_better": True, "n": n, "test_runs": 1, "flips": []}
    task["scores"] = {"specialised": found, "base": less}
    task["differences"] = {"specialised vs base": {**gain, "test": "McNemar exact", "improved": 1, "regressed": 1}}
    verdict = {"outcome": "no difference shown", "gain": gain, "controls_as_good": [], "not_compared": {}}
    training = {"loss": [], "validation_loss": [], "examples": 20, "seconds": 1.0, "world_size": 1}
    about = {"smoke": False, "name": name, "domain": "legal", "language": "en", "made_at": "2026-11-01T10:00:00Z"}
    nothing = dict.fromkeys(("forgetting", "merge_agreement", "gate", "resize"))
    models = {"specialised": {"path": "merged"}, "base": {"path": "tiny"}}
    data = {"tasks": {}, "leaks": {}, "replayed": None}
    made = {"lineage": {}, "recipe": {}, "versions": {}, "hardware": "two CPU cores", "seconds": {}}
    found = {"models": models, "tasks": {"clauses": task}, "verdict": verdict, "data": data, "training": training}
    return Results.model_validate({**about, **nothing, **found, **made})


def write_task(folder: Path) -> None:
    """Rows and task file as `prepare` leaves them."""
    docs = [
        {
            "id": f"{n:016x}",
            "prompt": f"Section {n}: the tenant may give notice in {n * 7 % 30} days.  임차인 {n}?",
            "choices": CHOICES,
            "target": n % 5,
            "label": CHOICES[n % 5],
            "description": "Say what the clause is.\n\n",
        }
        for n in range(40)
    ]
    write_table(docs, folder / "tasks" / "clauses" / "test.parquet")
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    config = {"task": "clauses", "output_type": "multiple_choice", "doc_to_choice": "choices", "metric_list": metrics}
    config |= {"description": "description", "metadata": {"version": 1.0}}
    file = folder / "tasks" / "clauses.yaml"
    found = resolve(TaskFile("clauses", file, config), {"test": "tasks/clauses/test.parquet"})
    file.write_text(yaml.safe_dump(found, sort_keys=False))
