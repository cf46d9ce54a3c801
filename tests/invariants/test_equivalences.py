"""Two ways to the same number, on one tiny run made from data to scores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_project

from sllm_tune import model as model_module
from sllm_tune import pipeline
from sllm_tune import train as train_module
from sllm_tune.evaluate.samples import choose_items, score
from sllm_tune.evaluate.scorer import PackedLM
from sllm_tune.model import load_adapted, load_model, load_tokenizer
from sllm_tune.recipe import load_recipe
from sllm_tune.run import read_jsonl
from sllm_tune.tasks import build


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Path]:
    """The folder of a whole run in float32."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (model_module, train_module):
            patch.setattr(module, "compute_dtype", lambda: torch.float32)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        folder = tmp_path_factory.mktemp("finished")
        recipe = load_recipe(write_project(folder, tiny_base), ["train.sft.max_steps=12"])
        pipeline.evaluate(recipe, folder / "run")
        yield folder / "run"


def task_of(folder: Path, name: str) -> Any:
    config = yaml.safe_load((folder / "tasks" / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def answers(folder: Path, task: str, model: str) -> list[Any]:
    return [row["prediction"] for row in read_jsonl(folder / "scores" / "samples" / task / f"{model}.jsonl")]


def section(folder: Path) -> Any:
    return load_recipe(folder.parent / "recipes" / "legal" / "tiny.yaml").base_model


def adapted(folder: Path) -> Any:
    base = section(folder)
    return load_adapted(base.path, base, folder / "adapter", longest_tokens=256)


def scored(
    folder: Path, model: Any, task: str = "clauses", batch_size: int = 8, **options: Any
) -> list[dict[str, Any]]:
    built = build(task_of(folder, task), root=folder, cache_dir=folder.parent / "cache")
    base = section(folder)
    lm = PackedLM(model, load_tokenizer(base.path, base), batch_size)
    assert lm.packs
    return score(lm, choose_items(task, built, None, [], 42), chat_template=True, **options)


def log_likelihoods(folder: Path, model: Any, batch_size: int = 8) -> torch.Tensor:
    """Of every choice of every test item, in nats."""
    base = section(folder)
    lm = PackedLM(model, load_tokenizer(base.path, base), batch_size)
    built = build(task_of(folder, "clauses"), root=folder, cache_dir=folder.parent / "cache")
    built.build_all_requests(apply_chat_template=True, chat_template=lm.apply_chat_template)
    return torch.tensor([value for value, _ in lm.loglikelihood(built.instances, disable_tqdm=True)])


def test_the_merged_model_answers_like_its_adapter(finished: Path):
    base = section(finished)
    merged = load_model(str(finished / "merged"), base, longest_tokens=256)
    beside = adapted(finished)
    assert merged.dtype == torch.float32
    assert not hasattr(merged, "peft_config")
    assert hasattr(beside, "peft_config")
    ours, theirs, before = (
        log_likelihoods(finished, model) for model in (merged, beside, load_model(base.path, base, longest_tokens=256))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 0.5  # training did move the answers
    kept = answers(finished, "clauses", "specialised")
    assert [row["prediction"] for row in scored(finished, beside)] == kept


def test_the_report_of_agreement_is_that_of_two_scorings(finished: Path):
    import json

    results = json.loads((finished / "scores" / "results.json").read_text(encoding="utf-8"))
    assert results["merge_agreement"]["value"] == 1.0
    assert results["merge_agreement"]["n"] == 10


@pytest.mark.parametrize("model", ["base", "merged"])
def test_the_batch_size_changes_no_answer(finished: Path, model: str):
    base = section(finished)
    path = base.path if model == "base" else str(finished / "merged")
    one, four, thirty_two = (
        log_likelihoods(finished, load_model(path, base, longest_tokens=256), batch_size=size) for size in (1, 4, 32)
    )
    torch.testing.assert_close(one, four, atol=1e-4, rtol=0)
    torch.testing.assert_close(one, thirty_two, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("task", "model", "shots"),
    [
        ("clauses", "base", 0),
        ("clauses", "specialised", 0),
        ("clauses", "base_fewshot", 2),
        ("skies", "base", 0),
        ("skies", "specialised", 0),
    ],
)
def test_every_answer_is_the_one_that_lm_eval_gives(
    finished: Path, task: str, model: str, shots: int, monkeypatch: pytest.MonkeyPatch
):
    """As `lm_eval --model hf --tasks tasks/clauses.yaml --apply_chat_template` in the run folder."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    path = str(finished / "merged") if model == "specialised" else section(finished).path
    lm = HFLM(pretrained=path, dtype="float32", device="cpu", batch_size=3)
    assert type(lm) is HFLM
    monkeypatch.chdir(finished)
    results = evaluator.simple_evaluate(
        model=lm,
        tasks=[task_of(finished, task)],
        num_fewshot=shots,
        apply_chat_template=True,
        fewshot_as_multiturn=False,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    theirs = [max(range(len(s["filtered_resps"])), key=lambda k: s["filtered_resps"][k][0]) for s in samples]
    assert answers(finished, task, model) == theirs
    kept = read_jsonl(finished / "scores" / "samples" / task / f"{model}.jsonl")
    assert [row["score"] for row in kept] == [sample["acc"] for sample in samples]
    assert results["results"][task]["acc,none"] == pytest.approx(sum(row["score"] for row in kept) / len(kept))
    assert len(set(theirs)) > 1 or model != "specialised"


def test_a_model_that_differs_is_noticed(finished: Path, monkeypatch: pytest.MonkeyPatch):
    """The comparisons above can fail: a scorer that loses the last token of every choice gives other figures."""
    from sllm_tune.evaluate import scorer

    base = section(finished)
    good = log_likelihoods(finished, load_model(base.path, base, longest_tokens=256))
    real = scorer._read_answers

    def faulty(row: Any, logits: Any) -> Any:
        return [(value + logits[0, 7].item(), greedy) for value, greedy in real(row, logits)]

    monkeypatch.setattr(scorer, "_read_answers", faulty)
    base_model = load_model(base.path, base, longest_tokens=256)
    lm = PackedLM(base_model, load_tokenizer(base.path, base), 8)
    assert not lm.packs  # its own probe sees it, and the harness's code answers instead
    bad = log_likelihoods(finished, base_model)
    torch.testing.assert_close(good, bad, atol=1e-4, rtol=0)
