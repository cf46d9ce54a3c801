"""A whole run whose base is made smaller first: what is trained, scored, skipped and refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from sllm_tune import load_recipe, pipeline
from sllm_tune.cli import main
from sllm_tune.errors import DataError, RecipeError
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.resize.source import Source
from sllm_tune.resize.steps import KINDS

REPOSITORY = Path(__file__).parents[2]

STEPS = "[{kind: trim_vocabulary}, {kind: prune_depth, keep: 1}, {kind: prune_width, intermediate_size: 96}]"


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "resize" / "steps.json").read_text())["steps"]


def results_of(folder: Path) -> Any:
    return json.loads((folder / "scores" / "results.json").read_text())


def test_a_smaller_base_is_what_is_trained_and_shipped(project: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pipeline.run(load_recipe(project, [f"resize={STEPS}"]), run)
    base, *made = steps_of(run)
    sizes = [step["parameters"] for step in (base, *made)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    assert [step["kind"] for step in made] == ["trim_vocabulary", "prune_depth", "prune_width"]
    assert made[1]["layers"] in ([0], [1])
    assert len(made[1]["importance"]) == 2
    assert set(made[2]["scores"]) == {"clauses", "skies"}
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert merged.num_parameters() == sizes[-1]
    assert (merged.config.num_hidden_layers, merged.config.intermediate_size) == (1, 96)
    assert merged.config.vocab_size == len(AutoTokenizer.from_pretrained(run / "merged"))
    models = results_of(run)["models"]
    assert (models["base"]["parameters"], models["specialised"]["parameters"]) == (sizes[0], sizes[-1])


def test_a_finished_resize_is_skipped_and_another_step_makes_it_again(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pipeline.resize(load_recipe(project, ["resize=[{kind: prune_depth, keep: 1}]"]), run)
    pipeline.resize(load_recipe(project, ["resize=[{kind: prune_depth, keep: 1}]"]), run)
    pipeline.resize(load_recipe(project, ["resize=[{kind: prune_depth, keep: 1, method: loss}]"]), run)
    said = capsys.readouterr().err
    assert "resize: skipped, nothing it depends on changed since" in said
    assert 'resize: resize[0].method changed from "block_influence" to "loss"' in said
    assert steps_of(run)[1]["method"] == "loss"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("base_model.quantization={load_in_8bit: true}", "resize: base_model.quantization"),
        ("evaluate.batch_size=3", "resize: evaluate.batch_size changed from 8 to 3"),
        ("evaluate.limit_general=5", "resize: evaluate.limit_general changed from null to 5"),
        ("data.source.skies={rows}", "resize: tasks/skies/test.parquet changed"),
    ],
)
def test_whatever_changes_what_a_step_measures_makes_it_again(
    project: Path, tmp_path: Path, override: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (project.parents[1] / "data" / "skies.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "others.jsonl", [{**row, "question": f"Say, {row['question']}"} for row in rows])
    asked = ["resize=[{kind: prune_depth, keep: 1}]"]
    pipeline.resize(load_recipe(project, asked), tmp_path / "run")
    asked.append(override.format(rows=tmp_path / "others.jsonl") if "{rows}" in override else override)
    pipeline.resize(load_recipe(project, asked), tmp_path / "run")
    assert named in capsys.readouterr().err


def test_a_task_with_one_validation_item_goes_without_a_score_after_each_step(project: Path, tmp_path: Path) -> None:
    overrides = ["data.limit.validation=1", "resize=[{kind: prune_depth, keep: 1}]"]
    pipeline.resize(load_recipe(project, overrides), tmp_path / "run")
    assert [set(step["scores"]) for step in steps_of(tmp_path / "run")] == [{"skies"}, {"skies"}]


def test_an_upscaled_base_is_deeper(project: Path, tmp_path: Path) -> None:
    folder = pipeline.resize(load_recipe(project, ["resize=[{kind: upscale_depth, overlap: 1}]"]), tmp_path / "run")
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 2
    assert steps_of(tmp_path / "run")[1]["layers"] == [0, 1]


@pytest.mark.parametrize("command", ["run", "check", "resize"])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("{kind: prune_depth, keep: 3}", "resize[0].keep: must be between 1 and 2, the layers of the model, got 3"),
        ("{kind: prune_width, num_attention_heads: 3}", "resize[0].num_attention_heads: must be a multiple of 2"),
        ("{kind: prune_width, hidden_size: 65}", "resize[0].hidden_size: must be between 1 and 64"),
        ("{kind: upscale_depth, overlap: 2}", "resize[0].overlap: must be between 1 and 1 for 2 layers, got 2"),
        ("{kind: prune_depth, keep: 2}, {kind: prune_depth, keep: 4}", "resize[1].keep: must be between 1 and 2"),
    ],
)
def test_what_the_base_cannot_give_is_refused_before_work_starts(
    command: str, step: str, message: str, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if command == "check" else ["--run-dir", str(tmp_path / "run")]
    assert main([command, str(project), f"resize=[{step}]", *where]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*/manifest.json"))


def test_two_processes_heal_as_one_of_the_same_global_batch(project: Path, tmp_path: Path) -> None:
    def healed(folder: Path, launcher: list[str], batch: int) -> dict[str, Any]:
        sft = f"{{max_steps: 4, logging_steps: 1, per_device_train_batch_size: {batch}, use_cpu: true"
        sft += ", train_sampling_strategy: random, learning_rate: 0.001}"
        steps = f"resize=[{{kind: prune_depth, keep: 1}}, {{kind: distill, sft: {sft}}}]"
        command = [*launcher, str(REPOSITORY / "scripts" / "resize.py"), str(project), steps, "--run-dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        return steps_of(folder)[-1]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    one = healed(tmp_path / "one", [sys.executable], 8)
    two = healed(tmp_path / "two", torchrun, 4)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=0.05)
    assert two["perplexity"] == pytest.approx(one["perplexity"], rel=0.05)


def test_a_killed_resize_goes_on_from_its_last_whole_step(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = "resize=[{kind: prune_depth, keep: 1}, {kind: trim_vocabulary}]"

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(KINDS, "trim_vocabulary", KINDS["trim_vocabulary"]._replace(take=killed))
    with pytest.raises(KeyboardInterrupt):
        pipeline.resize(load_recipe(project, [steps]), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setitem(KINDS, "prune_depth", KINDS["prune_depth"]._replace(take=killed))  # it is not taken again
    pipeline.resize(load_recipe(project, [steps]), tmp_path / "run")
    assert [step["kind"] for step in steps_of(tmp_path / "run")] == ["base", "prune_depth", "trim_vocabulary"]


def test_no_training_text_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    source = Source(tiny_base, tiny_base, BaseModelSection(path=str(tiny_base)), tmp_path, tmp_path, 42, "resize[0]")
    with pytest.raises(DataError, match="resize: there are no training examples to choose by what is kept"):
        _ = source.training


@pytest.mark.parametrize("step", ["{kind: trim_vocabulary}", "{kind: fit, max_parameters: 80000}"])
def test_a_trimmed_vocabulary_keeps_the_words_of_the_chat_template(
    step: str, project: Path, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    said = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\ninspect the premises<|im_end|>\n{% endif %}"
    (base / "chat_template.jinja").write_text(said + CHATML)
    task = project.parent / "tasks" / "clauses.yaml"
    task.write_text("description: Read the clause.\n" + task.read_text())  # the rows never show what the template says
    folder = pipeline.resize(load_recipe(project, [f"resize=[{step}]", f"base_model.path={base}"]), tmp_path / "run")
    whole, trimmed = (AutoTokenizer.from_pretrained(path) for path in (base, folder))
    assert len(trimmed) < len(whole)
    assert trimmed.tokenize("inspect the premises") == whole.tokenize("inspect the premises")
    assert trimmed.tokenize("매월 초일에 차임을") != whole.tokenize("매월 초일에 차임을")


def test_a_recipe_without_steps_has_nothing_to_resize(project: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe has no steps; add some, such as"):
        pipeline.resize(load_recipe(project))


@pytest.mark.parametrize("bits", ["{load_in_4bit: true, bnb_4bit_quant_type: nf4}", "{load_in_8bit: true}"])
def test_a_quantized_base_is_stored_in_fewer_bits_and_trained_on(bits: str, project: Path, tmp_path: Path) -> None:
    run, steps = tmp_path / "run", f"[{{kind: prune_depth, keep: 1}}, {{kind: quantize, quantization: {bits}}}]"
    pipeline.run(load_recipe(project, [f"resize={steps}"]), run)
    _, cut, stored = steps_of(run)
    assert stored["bytes"] < 0.9 * cut["bytes"]
    assert AutoModelForCausalLM.from_pretrained(run / "model").is_quantized
    assert not getattr(AutoModelForCausalLM.from_pretrained(run / "merged"), "is_quantized", False)


def test_a_search_writes_down_what_it_tried(project: Path, tmp_path: Path) -> None:
    pipeline.resize(load_recipe(project, ["resize=[{kind: fit, max_parameters: 80000}]"]), tmp_path / "run")
    base, found = steps_of(tmp_path / "run")
    assert found["parameters"] <= 80_000 < base["parameters"]
    assert [row["parameters"] for row in found["tried"] if row["chosen"]] == [found["parameters"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "[{kind: quantize, quantization: {load_in_8bit: true}}, {kind: prune_depth, keep: 1}]",
            "must be the last step",
        ),
        (
            "[{kind: fit, max_parameters: 9, max_bytes: 9}]",
            "resize[0]: needs one of max_parameters, max_bytes and min_sp",
        ),
        ("[{kind: quantize, quantization: {load_in_9bit: true}}]", "resize[0].quantization.load_in_9bit: unknown key"),
        ("[{kind: distill, sft: {learning_rat: 1.0}}]", "did you mean 'learning_rate'?"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(
    override: str, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resize", str(project), f"resize={override}"]) == 2
    assert message in capsys.readouterr().err
