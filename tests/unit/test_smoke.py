"""The tiny models of a smoke run: spoken to as their families are, and trained on the tokens that are graded."""

from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import SENTENCES

from sllm_tune import load_recipe
from sllm_tune.cli import main
from sllm_tune.errors import DataError, ModelError, RecipeError
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.runs.files import read_jsonl
from sllm_tune.smoke import FAMILIES, LONGEST, smoke, tiny_base
from sllm_tune.tasks.encode import IGNORED, Encoder

RULE, QUESTION = {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Is it binding? "}
PROMPTS = {
    "smollm2": (
        "<|im_start|>system\nYou are a small model that helps.<|im_end|>\n"
        "<|im_start|>user\n Is it binding? <|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Is it binding? <|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nIs it binding?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nIs it binding?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "solar": (
        "### User:\n Is it binding? \n\n### Assistant:\n",
        "### System:\nBe brief.\n\n### User:\n Is it binding? \n\n### Assistant:\n",
    ),
    "midm": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n사용자를 돕는 작은 모델이다.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nIs it binding?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nIs it binding?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "phi3": (
        "<s><|user|>\n Is it binding? <|end|>\n<|assistant|>\n",
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\n Is it binding? <|end|>\n<|assistant|>\n",
    ),
    "gemma3": (
        "<bos><start_of_turn>user\nIs it binding?<end_of_turn>\n<start_of_turn>model\n",
        "<bos><start_of_turn>user\nBe brief.\n\nIs it binding?<end_of_turn>\n<start_of_turn>model\n",
    ),
    "hyperclovax": (
        "<|im_start|>tool_list\n<|im_end|>\n<|im_start|>system\n<|im_end|>\n"
        "<|im_start|>user\n Is it binding? <|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>tool_list\n<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n Is it binding? <|im_end|>\n<|im_start|>assistant\n",
    ),
}
STOPS = {"solar": "</s>", "llama3": "<|eot_id|>", "midm": "<|eot_id|>", "phi3": "<|end|>", "gemma3": "<end_of_turn>"}


def encoder_of(family: str) -> Encoder:
    """Over the tokenizer as a run loads it: from the folder."""
    path = str(tiny_base(family, SENTENCES))
    return Encoder(load_tokenizer(path, BaseModelSection(path=path)), chat_template=True)


def test_a_recipe_can_name_each_family():
    assert list(get_args(get_args(BaseModelSection.model_fields["family"].annotation)[0])) == list(FAMILIES)
    assert set(PROMPTS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_writes_questions_and_system_messages_its_own_way(family: str):
    encoder = encoder_of(family)
    assert encoder.render([QUESTION]) == PROMPTS[family][0]
    assert encoder.render([RULE, QUESTION]) == PROMPTS[family][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_on_the_tokens_that_are_graded_with_one_begin_token_and_its_own_end_of_turn(family: str):
    encoder = encoder_of(family)
    for system in ([], [RULE]):
        context = encoder.render([*system, QUESTION])
        for answer in ("Yes", "임차인", "not in 1998"):
            tokens = encoder.supervise(context, answer)
            before, after = encoder.harness._encode_pair(context, answer)
            stop = STOPS.get(family, "<|im_end|>")
            assert tokens.input_ids == [*before, *after, encoder.tokenizer.convert_tokens_to_ids(stop)]
            learned = [label for label in tokens.labels if label != IGNORED]
            assert encoder.tokenizer.decode(learned) == answer + stop
            if FAMILIES[family].begin:
                begin = encoder.tokenizer.bos_token_id
                assert tokens.input_ids[0] == begin
                assert tokens.input_ids.count(begin) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_has_the_class_of_its_family_and_takes_any_token(family: str):
    import torch

    path = tiny_base(family, SENTENCES)
    model: Any = load_model(str(path), BaseModelSection(path=str(path)))
    assert type(model.config).__name__ == FAMILIES[family].config
    assert model.config.vocab_size == len(load_tokenizer(str(path), BaseModelSection(path=str(path))))
    assert sum(p.numel() for p in model.parameters()) < 300_000
    assert model.config.max_position_embeddings > LONGEST
    answer = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=50, do_sample=False)
    assert answer.shape == (1, 4)


def test_the_same_texts_give_the_same_folder_and_other_texts_another():
    assert tiny_base("solar", SENTENCES) == tiny_base("solar", SENTENCES)
    assert tiny_base("solar", SENTENCES) != tiny_base("solar", SENTENCES[1:])


def test_making_a_tiny_model_leaves_the_random_numbers_of_others_alone():
    import torch

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    tiny_base("solar", ["made for this test"])
    assert torch.rand(1) == expected


def test_a_header_of_phi3_swallows_its_line_break():
    tokenizer = encoder_of("phi3").tokenizer
    assert tokenizer.encode("<|user|>\nYes") == tokenizer.encode("<|user|>Yes")


def test_gemma_takes_turns():
    with pytest.raises(ModelError, match="roles must alternate"):
        encoder_of("gemma3").render([QUESTION, QUESTION])


@pytest.fixture
def smokable(project: Path) -> Path:
    """The recipe of the tests, with a family and sample rows in both folders."""
    text = project.read_text().replace("data:\n", "  family: gemma3\ndata:\n", 1)
    project.write_text(
        text.replace("learning_rate: 0.01", "learning_rate: 0.01, optim: adamw_torch_fused, eval_steps: 50")
    )
    data = project.parents[1] / "data"
    for folder, task in (("legal", "clauses"), ("general", "skies")):
        samples = project.parents[1] / folder / "samples"
        samples.mkdir()
        (data / f"{task}.jsonl").rename(samples / f"{task}.jsonl")
    return project


def test_a_smoke_run_changes_model_rows_and_amounts_and_nothing_else(smokable: Path):
    recipe = load_recipe(smokable, ["base_model.quantization={load_in_4bit: true}", "evaluate.gate={min_gain: 0.1}"])
    made = smoke(recipe)
    assert (recipe.smoke, made.smoke) == (False, True)
    assert made.name == "tiny-smoke"
    assert Path(made.base_model.path).name.startswith("tiny-gemma3-")
    assert made.base_model.quantization == recipe.base_model.quantization
    assert made.train.lora == recipe.train.lora
    assert made.train.sft["learning_rate"] == 0.01
    assert made.train.sft["max_steps"] == 4
    assert not {"optim", "eval_steps"} & set(made.train.sft)
    assert made.data.source == {
        "clauses": str(smokable.parent / "samples" / "clauses.jsonl"),
        "skies": str(smokable.parents[1] / "general" / "samples" / "skies.jsonl"),
    }
    assert made.evaluate.gate is None
    assert made.evaluate.num_fewshot == 1
    assert made.folder == recipe.folder


def test_the_command_line_takes_smoke(smokable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(smokable), "--smoke"]) == 0
    assert capsys.readouterr().out.startswith("tiny-smoke: the recipe is good\n")
    assert main(["prepare", str(smokable), "--smoke", "--run-dir", str(tmp_path / "run")]) == 0
    assert len(read_jsonl(tmp_path / "run" / "data" / "train.jsonl")) == 24


def test_a_recipe_without_a_family_cannot_be_smoked(project: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(RecipeError) as caught:
        smoke(load_recipe(project))
    assert str(caught.value) == (
        "base_model.family: required for --smoke, which makes a tiny model of that architecture; one of 'smollm2', "
        "'llama3', 'solar', 'midm', 'phi3', 'gemma3' or 'hyperclovax'"
    )
    assert main(["run", str(project), "--smoke"]) == 2
    assert "base_model.family: required for --smoke" in capsys.readouterr().err


def test_a_task_without_sample_rows_is_named_with_the_places(smokable: Path):
    (smokable.parent / "samples" / "clauses.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        smoke(load_recipe(smokable))
    assert str(caught.value).startswith("task 'clauses' has no sample rows for --smoke; looked for ")
    assert "legal/samples/clauses.jsonl and " in str(caught.value)
    assert "general/samples/clauses.jsonl.\n" in str(caught.value)
