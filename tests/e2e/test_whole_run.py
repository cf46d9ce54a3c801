"""A whole run of a tiny model: data to report, skipped, changed, interrupted, and launched as two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sllm_tune import load_recipe, pipeline
from sllm_tune.errors import BadInput
from sllm_tune.finished import FinishedRun

REPOSITORY = Path(__file__).parents[2]


def results_of(folder: Path) -> Any:
    return json.loads((folder / "scores" / "results.json").read_text())


@pytest.fixture
def finished(project: Path, tmp_path: Path) -> Path:
    pipeline.run(load_recipe(project), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_leaves_every_artefact_and_figures_for_all_models(finished: Path) -> None:
    for name in ("recipe.json", "data/card.json", "adapter/adapter_model.safetensors", "merged/model.safetensors"):
        assert (finished / name).exists(), name
    for name in ("report.html", "report.md", "train/metrics.jsonl", "tasks/clauses.yaml"):
        assert (finished / name).exists(), name
    results = results_of(finished)
    assert set(results["tasks"]["clauses"]["scores"]) == {"specialised", "base", "majority", "tfidf", "base_fewshot"}
    assert set(results["tasks"]["skies"]["scores"]) == {"specialised", "base"}
    assert results["tasks"]["clauses"]["kind"] == "domain"
    assert results["tasks"]["clauses"]["differences"]["specialised vs base"]["test"] == "McNemar exact"
    assert results["models"]["specialised"]["parameters"] == results["models"]["base"]["parameters"]
    assert results["merge_agreement"]["n"] > 0
    assert results["tasks"]["clauses"]["test_runs"] == 1
    assert results["everyday"]["n"] == 10
    assert set(results["everyday"]["followed"]) == {"specialised", "base"}
    assert results["everyday"]["prose"].keys() == {"en", "ko"}


def test_a_finished_run_is_an_object_that_says_and_answers(finished: Path) -> None:
    run = FinishedRun(finished)
    assert run.results.tasks["clauses"].scores["specialised"].value == pytest.approx(
        results_of(finished)["tasks"]["clauses"]["scores"]["specialised"]["value"]
    )
    assert run.verdict() in run._repr_html_()  # pyright: ignore[reportPrivateUsage]
    assert all(path.exists() for path in (run.report, run.adapter, run.merged))
    assert run.card.tasks["clauses"].rows > 0
    assert run.model().task("clauses").is_choice


def test_the_items_of_a_run_are_rows_with_what_everybody_answered(finished: Path) -> None:
    run = FinishedRun(finished)
    items = run.items("clauses")
    for who, score in run.results.tasks["clauses"].scores.items():
        right = [item[f"{who} is right"] for item in items]
        assert sum(right) / len(right) == pytest.approx(score.value)
        assert all((item[who] == item["target"]) == item[f"{who} is right"] for item in items)
    assert all(0.5 <= item["probability"] <= 1 for item in items)  # of two choices the likelier
    with pytest.raises(BadInput, match=r"no rows of 'skis'.*did you mean 'skies'"):
        run.items("skis")


def test_no_group_of_either_key_is_in_training_and_test(finished: Path) -> None:
    rows = {split: pq.read_table(finished / "tasks" / "clauses" / f"{split}.parquet") for split in ("train", "test")}
    for key in range(2):  # question and clause
        held_out = {group[key] for group in rows["test"]["group"].to_pylist()}
        assert len(held_out) >= 2
        assert not held_out & {group[key] for group in rows["train"]["group"].to_pylist()}


def test_a_second_run_skips_every_stage_and_says_why(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run(load_recipe(project), finished)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": skipped, nothing it depends on changed since")[0] for line in lines] == [
        "prepare",
        "train",
        "merge",
        "evaluate",
        "report",
    ]


def test_another_learning_rate_runs_from_train_on(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run(load_recipe(project, ["train.sft.learning_rate=5e-3"]), finished)
    said = capsys.readouterr().err
    assert "prepare: skipped" in said
    assert "train: train.sft.learning_rate changed from 0.01 to 0.005" in said
    assert "merge: adapter/adapter_model.safetensors changed" in said
    assert "evaluate: merged/model.safetensors changed" in said
    assert results_of(finished)["tasks"]["clauses"]["test_runs"] == 2


def test_another_language_makes_another_report_and_scores_nothing_again(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results_of(finished)
    pipeline.run(load_recipe(project, ["language=ko"]), finished)
    said = capsys.readouterr().err
    assert 'evaluate: language changed from "en" to "ko"' in said
    assert "items" not in said.replace("show_items", "")
    after = results_of(finished)
    assert after["tasks"] == before["tasks"]
    assert 'lang="ko"' in (finished / "report.html").read_text()


def test_another_metric_grades_the_answers_that_were_kept(
    finished: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results_of(finished)
    task = project.parent / "tasks" / "clauses.yaml"
    task.write_text(task.read_text().replace("- metric: acc", "- metric: acc_norm"))
    monkeypatch.setattr("sllm_tune.evaluate.contestants.load_model", lambda *_: pytest.fail("a model is asked"))
    pipeline.run(load_recipe(project), finished)
    after = results_of(finished)
    assert after["tasks"]["clauses"]["metric"] == "acc_norm"
    assert after["tasks"]["skies"] == {**before["tasks"]["skies"], "test_runs": 2}
    assert after["everyday"] == before["everyday"]
    assert after["models"] == before["models"]


def test_more_items_ask_only_what_was_not_asked_before(finished: Path, project: Path) -> None:
    def asked() -> dict[str, tuple[Any, int]]:
        files = (finished / "scores" / "answers").rglob("*.jsonl")
        rows = [(file, json.loads(line)) for file in files for line in file.read_text().splitlines()]
        return {f"{file.stem} {row['asked']}": row["said"] for file, row in rows}

    pipeline.run(load_recipe(project, ["evaluate.limit_general=3"]), finished)
    few = asked()
    pipeline.run(load_recipe(project, ["evaluate.limit_general=8"]), finished)
    many = asked()
    assert len(many) > len(few)
    assert all(many[name] == said for name, said in few.items() if name in many)


def test_show_items_false_keeps_every_text_answer_and_label_out_of_what_is_passed_on(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = project.parent / "tasks" / "clauses.yaml"
    task.write_text(task.read_text().replace('["Yes", "No"]', '["Zutreffend", "Abwegig"]'))
    folder, shown = tmp_path / "run", ("give notice", "Zutreffend", "Abwegig")
    for hidden in (True, False, True):  # what was shown or hidden before leaves nothing behind
        pipeline.run(load_recipe(project, [f"report.show_items={str(not hidden).lower()}"]), folder)
        passed_on = [folder / "report.html", folder / "report.md", folder / "data" / "card.json"]
        passed_on += (folder / "scores").rglob("*.json*")
        assert len(passed_on) > 9
        found = {path.name for path in passed_on for text in shown if text in path.read_text()}
        if hidden:
            assert found == set()
        else:
            assert {"card.json", "majority.jsonl", "results.json", "report.html"} <= found
    said = capsys.readouterr().err
    assert said.count("train: its outputs are not there yet") <= 1
    assert results_of(folder)["tasks"]["clauses"]["test_runs"] == 1


def test_each_task_is_judged_by_the_gate_and_compared_with_the_controls_that_it_has(
    project: Path, tmp_path: Path
) -> None:
    task = (project.parent / "tasks" / "clauses.yaml").read_text()
    written = task.replace("task: clauses", "task: echo").replace("multiple_choice", "generate_until")
    written = written.replace('doc_to_choice: ["Yes", "No"]\n', "").replace(
        '"{{ 0 if binding else 1 }}"', '"{{question}}"'
    )
    written = written.replace("metric: acc", "metric: exact_match").replace(
        "metric_list", "generation_kwargs: {until: ['!']}\nmetric_list"
    )
    (project.parent / "tasks" / "echo.yaml").write_text(written)
    asked = ["data.tasks=[clauses, echo]", "evaluate.domain=[clauses, echo]", "evaluate.gate={min_gain: -0.5}"]
    asked += ["data.limit.test=8", "data.allow_leaks=[clauses, echo]", "train.sft.max_steps=1"]
    pipeline.run(load_recipe(project, asked), tmp_path / "run")
    results = results_of(tmp_path / "run")
    assert [reason.split(":")[0].split()[:3] for reason in results["gate"]["reasons"]] == [
        ["Gain", "on", "clauses"],
        ["Gain", "on", "echo"],
    ]
    assert results["verdict"]["not_compared"] == {"majority": ["echo"], "tfidf": ["echo"]}
    assert {"majority", "tfidf", "base_fewshot"} <= results["models"].keys()
    page = (tmp_path / "run" / "report.md").read_text().splitlines()[0]
    assert page.endswith(
        "Not compared with: always giving the most common answer on echo; "
        "the TF-IDF baseline (with logistic regression) on echo."
    )


def test_no_local_path_is_in_what_is_passed_on(finished: Path, tmp_path: Path, tiny_base: Path) -> None:
    passed_on = [finished / "report.html", finished / "report.md", *(finished / "scores").rglob("*.json*")]
    passed_on += [*(finished / "adapter").iterdir(), *(finished / "merged").iterdir()]
    for path in passed_on:
        content = path.read_bytes()
        assert str(tiny_base).encode() not in content, path
        assert str(tmp_path).encode() not in content, path


def test_a_failed_gate_is_exit_status_1_and_the_report_is_there(project: Path, tmp_path: Path) -> None:
    done = sllm_tune("run", project, "evaluate.gate={min_gain: 0.99}", "--run-dir", tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "sllm-tune: the gate failed" in done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").exists()


def test_killed_in_training_and_run_again_it_ends_with_the_same_losses(
    project: Path, tmp_path: Path, finished: Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "sllm_tune.cli", "train", str(project), "--run-dir", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob(".work/train-*/checkpoints/*/complete")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "train" / "manifest.json").exists()
    pipeline.run(load_recipe(project), folder)
    losses = [
        [
            row["loss"]
            for row in map(json.loads, (at / "train" / "metrics.jsonl").read_text().splitlines())
            if "loss" in row
        ]
        for at in (finished, folder)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert results_of(folder)["tasks"] == results_of(finished)["tasks"]


def test_two_processes_train_as_one_of_the_same_global_batch(project: Path, tmp_path: Path) -> None:
    def losses(folder: Path, launcher: list[str], batch: int) -> list[float]:
        overrides = [f"train.sft.per_device_train_batch_size={batch}", "train.sft.train_sampling_strategy=random"]
        command = [*launcher, str(REPOSITORY / "scripts" / "train.py"), str(project), *overrides]
        done = subprocess.run(
            [*command, "train.sft.use_cpu=true", "--run-dir", str(folder)], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = map(json.loads, (folder / "train" / "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows if "loss" in row]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    one = losses(tmp_path / "one", [sys.executable], 8)
    two = losses(tmp_path / "two", torchrun, 4)
    assert json.loads((tmp_path / "two" / "train" / "manifest.json").read_text())["world_size"] == 2
    assert json.loads((tmp_path / "one" / "train" / "manifest.json").read_text())["world_size"] == 1
    assert one == pytest.approx(two, abs=0.02)


def sllm_tune(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "sllm_tune.cli", command, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=240)
