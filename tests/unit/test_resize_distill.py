"""Healing: the loss, the mapped vocabulary, and a cut model that comes back to its teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from sllm_tune import load_recipe, pipeline
from sllm_tune.errors import ModelError
from sllm_tune.train.distil import divergence, teacher_tokens
from sllm_tune.train.teacher import with_rest

SFT = "{learning_rate: 0.003, max_steps: 40, per_device_train_batch_size: 8, logging_steps: 5}"


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "resize" / "steps.json").read_text())["steps"]


def test_the_divergences_are_those_of_the_textbook() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 11), torch.randn(5, 11)
    q, p = softmax(student, -1), softmax(teacher, -1)
    forward, reverse = float((p * (p / q).log()).sum()), float((q * (q / p).log()).sum())
    assert float(divergence(q.log(), p.log(), "forward_kl")) == pytest.approx(forward, rel=1e-5)
    assert float(divergence(q.log(), p.log(), "reverse_kl")) == pytest.approx(reverse, rel=1e-5)
    assert float(divergence(q.log(), q.log(), "forward_kl")) == pytest.approx(0.0, abs=1e-6)


def test_tokens_that_were_not_kept_count_as_one_event() -> None:
    torch.manual_seed(0)
    q, p = (softmax(torch.randn(5, 11), -1) for _ in range(2))
    best = p.topk(3).indices
    own, theirs = (with_rest(side.log().gather(1, best)) for side in (q, p))
    assert torch.allclose(own.exp().sum(-1), torch.ones(5))
    whole = float(divergence(q.log(), p.log(), "forward_kl"))
    assert 0 < float(divergence(own, theirs, "forward_kl")) < whole  # what lies within the event is not seen


def test_each_token_of_a_trimmed_vocabulary_has_its_place_in_the_whole_one(
    project: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import AutoTokenizer

    folder = pipeline.resize(load_recipe(project, ["resize=[{kind: trim_vocabulary}]"]), tmp_path / "run")
    small = AutoTokenizer.from_pretrained(folder)
    places = teacher_tokens(small, tiny_tokenizer)
    assert len(places) == len(small) < len(tiny_tokenizer)
    assert all(
        tiny_tokenizer.convert_ids_to_tokens(old) == small.convert_ids_to_tokens(i) for i, old in enumerate(places)
    )


def test_a_teacher_of_another_vocabulary_is_refused(tiny_tokenizer: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"law": 0, "tax": 1}, unk_token="law")))
    with pytest.raises(
        ModelError, match="the teacher has another vocabulary; 2 of the student's 2 tokens are not in it"
    ):
        teacher_tokens(other, tiny_tokenizer)


@pytest.mark.parametrize(
    "how", ["divergence: forward_kl", "divergence: reverse_kl", "lora: {r: 8}", "share: 0", "teacher_top_k: 8"]
)
def test_healing_brings_perplexity_back(how: str, project: Path, tmp_path: Path) -> None:
    steps = f"[{{kind: prune_depth, keep: 1}}, {{kind: trim_vocabulary}}, {{kind: distill, {how}, sft: {SFT}}}]"
    pipeline.resize(load_recipe(project, [f"resize={steps}"]), tmp_path / "run")
    *_, cut, healed = steps_of(tmp_path / "run")
    assert healed["perplexity"] < 0.7 * cut["perplexity"]
    assert healed["parameters"] == cut["parameters"]
    assert healed["healed_tokens"] > 1000


def test_a_student_healed_in_four_bits_is_a_plain_checkpoint(project: Path, tmp_path: Path) -> None:
    bits = "base_model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}"
    steps = "[{kind: distill, lora: {r: 4}, sft: {max_steps: 2, per_device_train_batch_size: 4}}]"
    folder = pipeline.resize(load_recipe(project, [bits, f"resize={steps}"]), tmp_path / "run")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    base, healed = steps_of(tmp_path / "run")
    assert healed["bytes"] == base["bytes"]


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(project: Path, tmp_path: Path) -> None:
    sft = "{learning_rate: 0.000001, max_steps: 3, logging_steps: 1, per_device_train_batch_size: 4}"
    steps = f"[{{kind: distill, share: 1.0, sft: {sft}}}]"
    pipeline.resize(load_recipe(project, [f"resize={steps}"]), tmp_path / "run")
    before, after = steps_of(tmp_path / "run")
    assert after["loss"] == pytest.approx(0.0, abs=0.02)  # in nats: the teacher answers in bfloat16
    assert after["perplexity"] == pytest.approx(before["perplexity"], rel=0.05)


def test_answers_alone_have_fewer_tokens_with_loss(project: Path, tmp_path: Path) -> None:
    counts = {}
    for tokens in ("answer", "all"):
        steps = f"[{{kind: distill, tokens: {tokens}, sft: {{max_steps: 2, per_device_train_batch_size: 4}}}}]"
        pipeline.resize(load_recipe(project, [f"resize={steps}"]), tmp_path / tokens)
        counts[tokens] = steps_of(tmp_path / tokens)[1]["healed_tokens"]
    assert 0 < counts["answer"] < counts["all"] / 3


def test_the_loss_is_the_weighted_sum_in_nats_a_token(project: Path, tmp_path: Path) -> None:
    from sllm_tune.model.load import load_model, load_tokenizer
    from sllm_tune.recipe.resize import Distill
    from sllm_tune.tasks.encode import Encoder
    from sllm_tune.train.assemble import Job, assemble, encode_rows
    from sllm_tune.train.distil import distiller
    from sllm_tune.train.teacher import TopK, write_top_k

    recipe = load_recipe(project)
    pipeline.prepare(recipe, tmp_path / "run")
    base = str(recipe.base_model.path)
    sft = {"bf16": False, "max_steps": 1, "per_device_train_batch_size": 3}
    data = tmp_path / "run" / "data"
    trainer = assemble(Job(base, recipe.base_model, data, tmp_path, sft, None, 42, "resize[0]", False), distiller())
    teacher: Any = load_model(base, recipe.base_model, dtype=torch.float32)
    for parameter in teacher.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    step = Distill(kind="distill", share=0.25)
    trainer.teach(teacher, list(range(teacher.config.vocab_size)), step)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        got = trainer.compute_loss(trainer.model, dict(batch))
        shown = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        own, other = trainer.model(**shown).logits[:, :-1], teacher(**shown).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    counted = labels != -100
    expected = 0.75 * cross_entropy(own[counted], labels[counted])
    kl = divergence(own[counted].log_softmax(-1), other[counted].log_softmax(-1), "forward_kl")
    expected += 0.25 * kl / counted.sum()
    assert float(got) == pytest.approx(float(expected), rel=1e-4)

    # The same teacher from disk: all of its tokens give the same loss, but for float16; a few give a part of it.
    tokenizer: Any = load_tokenizer(base, recipe.base_model)
    rows = encode_rows(
        tmp_path / "run" / "data" / "train.jsonl", Encoder(tokenizer, chat_template=True), answers_only=False
    )
    places = list(range(teacher.config.vocab_size))
    from_disk = {}
    for k in (len(places), 4):
        write_top_k(teacher, rows, places, k, tmp_path / str(k))
        trainer.teach(TopK(tmp_path / str(k), rows), places, step)
        with torch.no_grad():
            from_disk[k] = float(trainer.compute_loss(trainer.model, dict(batch)))
    assert from_disk[len(places)] == pytest.approx(float(expected), rel=1e-3)
    assert 0.75 * float(cross_entropy(own[counted], labels[counted])) < from_disk[4] < float(expected)
