"""The model card of a finished run: `results.json` into a README.md with the hub's metadata.

No item of the data is in it, whatever the recipe says of reports, and every text of models and data is shown as text.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import yaml

from sllm_tune.deliver.licences import Commercial, commercial_use, trained_tasks
from sllm_tune.evaluate.plain import CardDict, ResultsDict, seen
from sllm_tune.report.sentences import sentences
from sllm_tune.report.words import Words, environment, fence, markdown_text, verdict_sentence
from sllm_tune.tasks.encode import Encoder
from sllm_tune.wording import visible

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LIBRARIES = {"adapter": "peft", "merged": "transformers"}
RELATIONS = {"adapter": "adapter", "merged": "finetune"}
# What the hub calls them; other metrics keep their own names.
METRICS = {"acc": "accuracy", "acc_norm": "accuracy", "exact_match": "exact_match"}

_HUB_DATA = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(?<!\.jsonl)(?<!\.json)(?<!\.csv)(?<!\.parquet)", re.ASCII)
_LOAD = {
    "adapter": """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{repo}", dtype="auto")
""",
    "merged": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")
""",
}
_ASK = """\
tokenizer = AutoTokenizer.from_pretrained("{repo}")
{prompt}
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_CHAT = """\
messages = {messages}
options = {{"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"{more}}}
inputs = tokenizer.apply_chat_template(messages, **options)"""
_PLAIN = 'inputs = tokenizer({text}, return_tensors="pt")'


@dataclass(frozen=True)
class Terms:
    """Under which names and licences a model is published."""

    repo: str
    """`owner/name` on the hub."""

    licence: str
    """Of what is published, as the hub names licences: apache-2.0, cc-by-nc-4.0, other."""

    base: str | None = None
    """The base's id on the hub; None where it is on none."""

    base_licence: str | None = None
    """What the base's own repository says; None where there is none, or it says nothing."""


@dataclass(frozen=True)
class Asked:
    """How the specialist is asked, beside the text of the question: the prompt that was trained and scored."""

    encoder: Encoder
    """Of the merged model."""

    description: str
    """What stands before every question; "" where there is none."""


def model_card(results: ResultsDict, terms: Terms, format: str, asked: Asked | None = None) -> str:
    """The text of README.md: the hub's metadata as YAML, then the card in the language of the run's report.

    Args:
        results: The content of a run's `scores/results.json`.
        terms: Names and licences.
        format: "adapter" or "merged".
        asked: For the lines that load and ask it; None is a question by itself.
    """
    results = seen(results)
    language = results["language"]
    words = Words(sentences(language), results["models"])
    own = yaml.safe_load(resources.files("sllm_tune.deliver").joinpath("templates/card.yaml").read_text("utf-8"))
    view: dict[str, object] = {
        "r": results,
        "t": words.text,
        "w": words,
        "c": own[language],
        "format": format,
        "verdict": verdict_sentence(results, words),
        "tasks": sorted(results["tasks"].items(), key=lambda task: task[1]["kind"] != "domain"),
        "trained": [_data(name, card) for name, card in trained_tasks(results).items()],
        "base_name": terms.base or results["recipe"]["base_model"]["path"],
        "base_licence": terms.base_licence,
        "licence": terms.licence,
        "load": _load_lines(results, terms.repo, format, own[language]["question"], asked),
        "recipe": yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True, width=100),
        "again": f"pip install sllm-tune=={results['versions'].get('sllm-tune', '')}\nsllm-tune run recipe.yaml\n",
        "cost_models": [
            name for name, model in results["models"].items() if words.text["cost_rows"].keys() & model.keys()
        ],
    }
    template = environment(finalize=markdown_text, package="sllm_tune.deliver").get_template("card.md.j2")
    return f"---\n{_metadata(results, terms, format)}\n---\n{template.render(view, fence=fence)}"


def _metadata(results: ResultsDict, terms: Terms, format: str) -> str:
    from huggingface_hub import ModelCardData

    hub_data = [card["source"] for card in trained_tasks(results).values() if _HUB_DATA.fullmatch(card["source"])]
    scores = [] if results.get("smoke") else _eval_results(results)
    data = ModelCardData(
        language=results["language"],
        license=terms.licence,
        base_model=terms.base,
        base_model_relation=RELATIONS[format] if terms.base else None,
        datasets=sorted(set(hub_data)) or None,
        library_name=LIBRARIES[format],
        pipeline_tag="text-generation",
        tags=["sllm-tune", results["domain"], *(["lora"] if format == "adapter" else [])],
        model_name=terms.repo.rpartition("/")[2] if scores else None,
        eval_results=scores or None,
    )
    return data.to_yaml()


def _eval_results(results: ResultsDict) -> list[EvalResult]:
    """The specialist's scores as the hub's `model-index` has them, each with its interval and number of items."""
    from huggingface_hub import EvalResult

    sources = {name: card["source"] for name, card in results["data"]["tasks"].items()}
    found: list[EvalResult] = []
    for name, task in results["tasks"].items():
        score = task["scores"]["specialised"]
        if not math.isfinite(score["value"]):
            continue
        source = sources.get(name, "")
        one = EvalResult(
            task_type="text-generation",
            dataset_type=source if _HUB_DATA.fullmatch(source) else name,
            dataset_name=name,
            dataset_config=name,  # two tasks of one data set stay two
            dataset_split="test",
            metric_type=METRICS.get(task["metric"], task["metric"]),
            metric_name=task["metric"],
            metric_value=round(score["value"], 4),
            metric_args={"ci95": [round(bound, 4) for bound in score["ci95"]], "items": task["n"]},
        )
        found.append(one)
    return found


def _data(name: str, card: CardDict) -> dict[str, str | int]:
    """What the card says of the rows of one task."""
    personal = card.get("personal_data")
    rows = personal["rows"] if personal else 0
    allowed = commercial_use(card)
    return {
        "name": name,
        "source": card["source"],
        "licence": card["licence"],
        "commercial": {Commercial.ALLOWED: "allowed", Commercial.FORBIDDEN: "forbidden"}.get(allowed, "unknown"),
        "personal": "unsearched" if not personal else personal["policy"] if rows else "none",
        "personal_rows": rows,
    }


def _load_lines(results: ResultsDict, repo: str, format: str, text: str, asked: Asked | None) -> str:
    description = visible(asked.description) if asked else ""
    if results["recipe"]["base_model"]["chat_template"]:
        messages = [{"role": "system", "content": description}] if description else []
        messages.append({"role": "user", "content": text})
        more = ', "enable_thinking": False' if asked and asked.encoder.thinks else ""
        messages = asked.encoder.as_given(messages) if asked else messages
        prompt = _CHAT.format(messages=json.dumps(messages, ensure_ascii=False), more=more)
    else:
        prompt = _PLAIN.format(text=json.dumps(f"{description}{text}", ensure_ascii=False))
    return _LOAD[format].format(repo=repo) + _ASK.format(repo=repo, prompt=prompt)
