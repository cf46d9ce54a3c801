"""Two ways to the same number, on one tiny run made from data to scores."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_project

from sllm_tune import pipeline
from sllm_tune.answer import local as scorer
from sllm_tune.answer.items import choose_items, score
from sllm_tune.answer.local import PackedLM
from sllm_tune.model import load as model_module
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.model.merge import load_adapted
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.runs.files import read_jsonl
from sllm_tune.tasks.build import build
from sllm_tune.train import assemble as assembling
from sllm_tune.train import stage as train_module


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Path]:
    """The folder of a run in float32, as far as its scores."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (model_module, train_module, assembling):
            patch.setattr(module, "compute_dtype", lambda: torch.float32)
            patch.setattr("sllm_tune.model.merge.compute_dtype", lambda: torch.float32)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        folder = tmp_path_factory.mktemp("finished")
        recipe = load_recipe(write_project(folder, tiny_base), ["train.sft.max_steps=12"])
        pipeline.evaluate(recipe, folder / "run")
        yield folder / "run"


def section(folder: Path) -> Any:
    return load_recipe(folder.parent / "recipes" / "legal" / "tiny.yaml").base_model


def config_of(folder: Path, task: str) -> Any:
    return yaml.safe_load((folder / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))


def model_of(folder: Path, name: str) -> Any:
    base = section(folder)
    if name == "adapter":
        return load_adapted(base.path, base, folder / "adapter")
    return load_model(str(folder / "merged") if name == "merged" else base.path, base)


def packed(folder: Path, name: str, batch_size: int = 8) -> PackedLM:
    base = section(folder)
    lm = PackedLM(model_of(folder, name), load_tokenizer(base.path, base), batch_size, chat_template=base.chat_template)
    assert lm.packs
    assert lm.model.dtype == torch.float32
    return lm


def log_likelihoods(folder: Path, lm: Any, task: str = "clauses", shots: int = 0) -> torch.Tensor:
    """Of every choice of every test item, in nats."""
    built = build(config_of(folder, task), root=folder)
    built.set_config("num_fewshot", shots)
    built.build_all_requests(apply_chat_template=True, chat_template=lm.apply_chat_template)
    return torch.tensor([value for value, _ in lm.loglikelihood(built.instances, disable_tqdm=True)])


def predictions(folder: Path, task: str, model: str) -> list[int]:
    return [row["prediction"] for row in read_jsonl(folder / "scores" / "samples" / task / f"{model}.jsonl")]


# --- merged model and adapter


def test_the_merged_model_answers_like_its_adapter(finished: Path):
    merged, beside = packed(finished, "merged"), packed(finished, "adapter")
    assert [hasattr(lm.model, "peft_config") for lm in (merged, beside)] == [False, True]
    ours, theirs, before = (log_likelihoods(finished, lm) for lm in (merged, beside, packed(finished, "base")))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 0.5  # training did move the answers

    built = build(config_of(finished, "clauses"), root=finished)
    rows = score(beside, choose_items("clauses", built, None, [], 42), chat_template=True)
    assert [row["prediction"] for row in rows] == predictions(finished, "clauses", "specialised")


def test_the_agreement_of_both_is_measured_on_the_validation_items(finished: Path):
    results = json.loads((finished / "scores" / "results.json").read_text(encoding="utf-8"))
    agreement = results["merge_agreement"]
    assert (agreement["value"], agreement["n"], agreement["flipped"]) == (1.0, 10, 0)


def test_an_adapter_of_another_strength_is_noticed(finished: Path):
    beside = packed(finished, "adapter")
    for name, parameter in beside.model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 1.02
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        torch.testing.assert_close(
            log_likelihoods(finished, beside), log_likelihoods(finished, packed(finished, "merged")), atol=1e-4, rtol=0
        )


# --- batch sizes


@pytest.mark.parametrize("model", ["base", "merged"])
def test_the_batch_size_changes_no_answer(finished: Path, model: str):
    one, *others = (log_likelihoods(finished, packed(finished, model, size)) for size in (1, 4, 32))
    for other in others:
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


# --- ours and lm-eval's


def as_lm_eval(folder: Path, task: str, name: str, shots: int) -> dict[str, Any]:
    """`lm_eval --model hf --tasks tasks/clauses.yaml --apply_chat_template --num_fewshot ...` in the run folder."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    path = str(folder / "merged") if name == "specialised" else section(folder).path
    lm = HFLM(pretrained=path, dtype="float32", device="cpu", batch_size=3)
    assert type(lm) is HFLM
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the task file names its rows from there
        results = evaluator.simple_evaluate(
            model=lm,
            tasks=[config_of(folder, task)],
            task_manager=TaskManager(include_defaults=False),
            num_fewshot=shots,
            apply_chat_template=True,
            fewshot_as_multiturn=False,
            bootstrap_iters=0,
        )
    assert results
    return {**results["results"][task], "samples": sorted(results["samples"][task], key=lambda s: s["doc_id"])}


@pytest.mark.parametrize(
    ("task", "name", "shots"),
    [
        ("clauses", "base", 0),
        ("clauses", "base_fewshot", 2),
        ("clauses", "specialised", 0),
        ("skies", "base", 0),
        ("skies", "specialised", 0),
    ],
)
def test_every_answer_is_the_one_that_lm_eval_gives(finished: Path, task: str, name: str, shots: int):
    theirs = as_lm_eval(finished, task, name, shots)
    samples = theirs["samples"]
    chosen = [max(range(len(s["filtered_resps"])), key=lambda k: s["filtered_resps"][k][0]) for s in samples]
    assert predictions(finished, task, name) == chosen
    if task == "skies":
        assert len(set(chosen)) > 2  # not one answer to everything

    kept = read_jsonl(finished / "scores" / "samples" / task / f"{name}.jsonl")
    assert [row["score"] for row in kept] == [sample["acc"] for sample in samples]
    results = json.loads((finished / "scores" / "results.json").read_text(encoding="utf-8"))
    assert results["tasks"][task]["scores"][name]["value"] == pytest.approx(theirs["acc,none"], abs=1e-12)

    lm = packed(finished, "merged" if name == "specialised" else "base")
    values = torch.tensor([value for sample in samples for value, _ in sample["filtered_resps"]])
    torch.testing.assert_close(log_likelihoods(finished, lm, task, shots), values, atol=1e-4, rtol=0)
    if shots:
        assert samples[0]["arguments"][0][0].count("Question:") == 3


def test_a_scorer_that_forgets_a_token_is_noticed(finished: Path, monkeypatch: pytest.MonkeyPatch):
    samples = as_lm_eval(finished, "skies", "base", 0)["samples"]
    values = torch.tensor([value for sample in samples for value, _ in sample["filtered_resps"]])
    lm = packed(finished, "base")
    real = scorer._read_answers
    monkeypatch.setattr(scorer, "_read_answers", lambda row, logits: real(row, logits.roll(1, 0)))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        torch.testing.assert_close(log_likelihoods(finished, lm, "skies"), values, atol=1e-4, rtol=0)
