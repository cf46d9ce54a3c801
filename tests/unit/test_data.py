"""Splits that do not leak, and a data card that accounts for every row."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, CLAUSES_TASK, clause_rows, write_rows

from sllm_tune import pipeline
from sllm_tune.data import DEFAULT_SHARES, split_rows
from sllm_tune.errors import DataError, ModelError, SourceError
from sllm_tune.recipe import load_recipe
from sllm_tune.run import read_jsonl
from sllm_tune.tasks import SPLITS

SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}


def prepared(project: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """The run folder after `prepare`, and its data card's tasks."""
    folder = project.parents[2] / "run"
    pipeline.prepare(load_recipe(project, overrides), folder)
    return folder, json.loads((folder / "data" / "card.json").read_text(encoding="utf-8"))["tasks"]


def refusal(project: Path, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        prepared(project, *overrides)
    assert not (project.parents[2] / "run" / "data").exists()
    return str(caught.value)


def source(project: Path) -> Path:
    return project.parents[1] / "data" / "clauses.jsonl"


def edit_task(project: Path, old: str, new: str) -> None:
    assert old in CLAUSES_TASK
    (project.parent / "tasks" / "clauses.yaml").write_text(CLAUSES_TASK.replace(old, new))


def split_of(project: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows behind the examples of each split, found by their ids."""
    from sllm_tune.tasks import row_id

    rows = {row_id(row): row for row in read_jsonl(source(project))}
    return {name: [rows[e["id"]] for e in read_jsonl(folder / "data" / f"{name}.jsonl")] for name in SPLITS}


def accounted_for(entry: dict[str, Any]) -> int:
    dropped = entry["duplicates_dropped"] + entry["mixed_rows_dropped"] + entry["over_limit_dropped"]
    return dropped + sum(split["rows"] for split in entry["splits"].values())


# --- the split itself


@pytest.mark.parametrize("seed", range(20))
def test_no_value_of_any_key_is_in_two_splits(seed: int):
    draw = random.Random(seed)
    sizes = [draw.randint(6, 30) for _ in range(2)]
    rows = [{"a": draw.randrange(sizes[0]), "b": f"b{draw.randrange(sizes[1])}", "n": n} for n in range(400)]
    split = split_rows(rows, ["a", "b"], SHARES, seed, "task")
    for key in ("a", "b"):
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            assert not {row[key] for row in split[one]} & {row[key] for row in split[other]}
    kept = [row["n"] for name in SPLITS for row in split[name]]
    assert len(kept) == len(set(kept)) < 400
    assert min(len(split["train"]), len(split["test"])) > 0


def test_a_row_is_dropped_only_where_its_keys_disagree():
    rows = clause_rows()
    split = split_rows(rows, ["question", "clause"], SHARES, 42, "clauses")
    place = {(key, row[key]): name for name in SPLITS for row in split[name] for key in ("question", "clause")}
    kept = [row for name in SPLITS for row in split[name]]
    for row in rows:
        agree = place[("question", row["question"])] == place[("clause", row["clause"])]
        assert agree == (row in kept)


def test_the_shares_are_of_the_groups_of_each_key():
    rows = [{"a": n, "n": m} for n in range(20) for m in range(3)]
    split = split_rows(rows, ["a"], SHARES, 42, "task")
    assert {name: len({row["a"] for row in split[name]}) for name in SPLITS} == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }
    assert sum(map(len, split.values())) == 60  # one key never disagrees with itself


def test_without_a_key_each_row_is_its_own_group():
    split = split_rows([{"n": n} for n in range(50)], [], DEFAULT_SHARES, 42, "task")
    assert {name: len(rows) for name, rows in split.items()} == {"train": 40, "validation": 5, "test": 5}


def test_the_seed_alone_decides_the_split():
    rows = clause_rows()
    first = split_rows(rows, ["question", "clause"], SHARES, 1, "clauses")
    shuffled = random.Random(0).sample(rows, len(rows))
    again = split_rows(shuffled, ["question", "clause"], SHARES, 1, "clauses")
    other = split_rows(rows, ["question", "clause"], SHARES, 2, "clauses")
    named = [{str(row) for row in split["test"]} for split in (first, again, other)]
    assert named[0] == named[1] != named[2]


# --- the stage


def test_prepared_splits_share_neither_question_nor_clause(project: Path):
    folder, card = prepared(project)
    split = split_of(project, folder)
    for key in ("question", "clause"):
        values = [{row[key] for row in split[name]} for name in SPLITS]
        assert not values[0] & values[1]
        assert not values[0] & values[2]
        assert not values[1] & values[2]
        assert [card["clauses"]["splits"][name]["groups"][key] for name in SPLITS] == [len(v) for v in values]
    assert [len(split[name]) for name in SPLITS] == [60, 10, 21]


def test_the_card_accounts_for_every_row(project: Path):
    rows = clause_rows()
    write_rows(source(project), [*rows, *rows[:7]])
    _, card = prepared(project, "data.limit={train: 50, test: 20}")
    entry = card["clauses"]
    assert entry["rows"] == 247
    assert accounted_for(entry) == 247
    assert (entry["duplicates_dropped"], entry["mixed_rows_dropped"], entry["over_limit_dropped"]) == (7, 149, 11)
    assert {name: split["rows"] for name, split in entry["splits"].items()} == {
        "train": 50,
        "validation": 10,
        "test": 20,
    }
    assert (entry["source"], entry["licence"]) == ("clauses.jsonl", "CC0-1.0")


def test_the_rows_of_a_task_that_is_only_graded_are_accounted_for_too(project: Path):
    _, card = prepared(project, "evaluate.limit_general=5")
    assert accounted_for(card["skies"]) == card["skies"]["rows"] == 12
    assert card["skies"]["over_limit_dropped"] == 7
    assert list(card["skies"]["splits"]) == ["test"]


def test_the_limit_of_general_tasks_is_not_that_of_a_domain_task_without_training(project: Path):
    overrides = ["evaluate.domain=[clauses, skies]", "evaluate.general=[]", "data.limit.test=9"]
    _, card = prepared(project, *overrides, "evaluate.limit_general=5")
    assert card["skies"]["splits"]["test"]["rows"] == 9


def test_the_labels_and_tokens_of_each_split_are_counted(project: Path):
    folder, card = prepared(project)
    for name in SPLITS:
        examples = read_jsonl(folder / "data" / f"{name}.jsonl")
        described = card["clauses"]["splits"][name]
        assert described["labels"] == dict(sorted(Counter(example["label"] for example in examples).items()))
        assert described["tokens"] == sum(example["tokens"] for example in examples)


def test_the_same_seed_makes_the_same_files(project: Path):
    made = []
    for _ in range(2):
        folder, _ = prepared(project)
        made.append([(folder / "data" / f"{name}.jsonl").read_bytes() for name in SPLITS])
        (folder / "prepare" / "manifest.json").unlink()
    assert made[0] == made[1]
    folder, _ = prepared(project, "seed=7")
    assert (folder / "data" / "train.jsonl").read_bytes() != made[0][0]


def test_dates_and_numbers_stay_as_they_are_written(project: Path):
    rows = [{**row, "question": f"2024-02-{10 + n // 10} {row['question']}"} for n, row in enumerate(clause_rows())]
    rows = [{**row, "clause": f"19{10 + n % 10}-01-01"} for n, row in enumerate(rows)]
    write_rows(source(project), rows)
    folder, _ = prepared(project)
    split = split_of(project, folder)  # by id, so every row is what it was
    examples = read_jsonl(folder / "data" / "train.jsonl")
    assert [e["prompt"].splitlines()[0] for e in examples] == [f"Clause: {row['clause']}" for row in split["train"]]


def test_a_resolved_task_is_read_by_the_harness_from_the_run_folder(project: Path):
    import yaml

    from sllm_tune.tasks import build

    folder, _ = prepared(project)
    config = yaml.safe_load((folder / "tasks" / "clauses.yaml").read_text())
    assert config["dataset_kwargs"] == {
        "data_files": {name: f"tasks/clauses/{name}.parquet" for name in ("train", "validation", "test")}
    }
    built = build(config, root=folder, cache_dir=folder / "cache")
    split = split_of(project, folder)
    assert sorted(map(str, built.eval_docs)) == sorted(map(str, split["test"]))
    assert sorted(map(str, built.training_docs())) == sorted(map(str, split["train"]))


def test_nothing_but_data_and_tasks_is_left_in_the_run_folder(project: Path):
    folder, _ = prepared(project)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        ".work",
        "data",
        "prepare",
        "recipe.json",
        "tasks",
    ]
    assert list((folder / ".work").iterdir()) == []


# --- what is refused


def test_rows_longer_than_max_length_are_refused_with_their_number(project: Path):
    rows = clause_rows()
    for row in rows:
        if row["clause"].startswith("The agent"):
            row["clause"] += " And so on." * 40
    write_rows(source(project), rows)
    said = refusal(project)
    assert said.startswith("clauses: 24 of 60 rows are longer than data.max_length 256 (the longest has ")
    assert said.endswith(" tokens).\n  Raise data.max_length, or shorten the prompt in the task file.")


def test_keys_that_leave_fewer_than_two_groups_are_refused(project: Path):
    write_rows(source(project), [{**row, "question": "the same"} for row in clause_rows()])
    assert refusal(project) == (
        "clauses: split_by 'question' leaves fewer than two groups (1), so nothing can be held out.\n"
        "  Name a column with more values in metadata.split_by."
    )


def test_a_key_that_is_no_column_is_refused(project: Path):
    edit_task(project, "[question, clause]", "[document]")
    assert refusal(project) == (
        "clauses: metadata.split_by names 'document', which is no column; there are ['binding', 'clause', 'question']."
    )


@pytest.mark.parametrize(
    ("empty", "shares"),
    [
        ("test", "{train: 0.9, validation: 0.09, test: 0.01}"),
        ("validation", "{train: 0.5, validation: 0.01, test: 0.49}"),
        ("train", "{train: 0.01, validation: 0.49, test: 0.5}"),
    ],
)
def test_an_empty_split_is_refused(project: Path, empty: str, shares: str):
    edit_task(project, "{train: 0.5, validation: 0.2, test: 0.3}", shares)
    first, second = refusal(project).split("\n")
    assert first == f"clauses: the {empty} split is empty: no row has all of ['question', 'clause'] in it."
    assert second.startswith("  Enlarge its share in metadata.split ({'train': 0.")
    assert second.endswith("), or split by fewer keys.")


def test_a_validation_split_may_be_left_out(project: Path):
    edit_task(project, "validation: 0.2, test: 0.3", "validation: 0, test: 0.5")
    folder, card = prepared(project)
    assert list(card["clauses"]["splits"]) == ["train", "test"]
    assert read_jsonl(folder / "data" / "validation.jsonl") == []


@pytest.mark.parametrize("shares", ["{train: 0.5, validation: 0.2, test: 0.2}", "{train: 0.5, test: 0.5}"])
def test_shares_that_do_not_make_one_whole_are_refused(project: Path, shares: str):
    edit_task(project, "{train: 0.5, validation: 0.2, test: 0.3}", shares)
    said = refusal(project)
    assert said.startswith("clauses: metadata.split must give train, validation and test shares that sum to 1, got {")


def test_a_source_without_rows_is_refused(project: Path):
    source(project).write_text("")
    assert refusal(project) == "clauses: no rows in ../../data/clauses.jsonl."


def test_a_source_that_is_not_there_is_refused(project: Path):
    source(project).unlink()
    with pytest.raises(SourceError, match=r"clauses\.yaml: metadata: no file '\.\./\.\./data/clauses\.jsonl'; tried "):
        prepared(project)


def test_a_source_that_changed_is_prepared_again(project: Path, capsys: pytest.CaptureFixture[str]):
    prepared(project)
    assert "prepare: not made yet" in capsys.readouterr().err
    prepared(project)
    assert "prepare: skipped, nothing it depends on changed since " in capsys.readouterr().err
    write_rows(source(project), clause_rows()[:230])
    _, card = prepared(project)
    assert "prepare: ../../data/clauses.jsonl changed" in capsys.readouterr().err
    assert card["clauses"]["rows"] == 230


def test_another_file_can_be_given_for_a_task(project: Path):
    mine = project.parents[2] / "private" / "mine.jsonl"
    mine.parent.mkdir()
    write_rows(mine, clause_rows()[:200])
    _, card = prepared(project, f"data.source={{clauses: {mine}}}")
    assert (card["clauses"]["rows"], card["clauses"]["source"]) == (200, "mine.jsonl")


def test_a_refusal_leaves_what_was_made_before(project: Path):
    folder, _ = prepared(project)
    before = (folder / "data" / "train.jsonl").read_bytes()
    with pytest.raises(DataError):
        prepared(project, "data.max_length=10")
    assert (folder / "data" / "train.jsonl").read_bytes() == before
    assert (folder / "prepare" / "manifest.json").exists()


def test_a_chat_template_that_is_not_only_appended_to_is_refused_by_prepare(project: Path, make_tokenizer: Any):
    base = project.parents[2] / "base"
    thinks = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    make_tokenizer(chat_template=thinks).save_pretrained(base)
    with pytest.raises(ModelError, match="shows an answered question differently"):
        prepared(project, f"base_model.path={base}")


# --- a task that the harness ships


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows(n_rows: int) -> Any:
        choices = {"text": ["rock", "tree"], "label": ["A", "B"]}
        made = [{"question_stem": f"Which {n}?", "choices": choices, "answerKey": "AB"[n % 2]} for n in range(n_rows)]
        return datasets.Dataset.from_list(made)

    data = datasets.DatasetDict({"train": rows(40), "validation": rows(8), "test": rows(10)})
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, **o: data if path == "allenai/openbookqa" else real(path, **o)
    )


def test_a_shipped_task_is_trained_on_its_own_splits(project: Path, shipped: None):
    overrides = ["data.tasks=[openbookqa]", "evaluate.domain=[openbookqa]", "evaluate.general=[]"]
    folder, card = prepared(project, *overrides, "data.limit.train=30")
    entry = card["openbookqa"]
    assert entry["source"] == "lm-eval: openbookqa"
    assert {name: split["rows"] for name, split in entry["splits"].items()} == {"train": 30, "validation": 8}
    assert (entry["rows"], entry["over_limit_dropped"]) == (48, 10)
    examples = read_jsonl(folder / "data" / "train.jsonl")
    assert {example["target"] for example in examples} == {"rock", "tree"}
    assert not (folder / "tasks" / "openbookqa.yaml").exists()  # graded in place, from the harness


def test_a_shipped_task_without_training_rows_cannot_be_trained_on(project: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    row = {"question": "Which?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]}}
    data = datasets.DatasetDict({"validation": datasets.Dataset.from_list([row, row])})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: data)
    assert refusal(project, "data.tasks=[truthfulqa_mc1]") == (
        "truthfulqa_mc1: lm-eval has no training rows for it, so it can only be graded (evaluate.domain)."
    )
