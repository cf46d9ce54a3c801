"""Splits that do not leak, and a data card that accounts for every row."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHATML, CLAUSES_TASK, clause_rows, write_rows

from sllm_tune import pipeline
from sllm_tune.data.stage import inputs as stage_inputs
from sllm_tune.errors import DataError, ModelError, RecipeError, SourceError, TaskError
from sllm_tune.model.find import Base
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.rows.read import row_id
from sllm_tune.runs.files import read_jsonl
from sllm_tune.tasks.find import SPLITS


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
    rows = {row_id(row): row for row in read_jsonl(source(project))}
    return {name: [rows[e["id"]] for e in read_jsonl(folder / "data" / f"{name}.jsonl")] for name in SPLITS}


def accounted_for(entry: dict[str, Any]) -> int:
    dropped = entry["duplicates_dropped"] + entry["mixed_rows_dropped"] + entry["over_limit_dropped"]
    return dropped + sum(split["rows"] for split in entry["splits"].values())


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
    folder, _ = prepared(project, "data.allow_leaks=[clauses]")  # so dated, its questions are very much alike
    split = split_of(project, folder)  # by id, so every row is what it was
    examples = read_jsonl(folder / "data" / "train.jsonl")
    assert [e["prompt"].splitlines()[0] for e in examples] == [f"Clause: {row['clause']}" for row in split["train"]]


def test_a_resolved_task_is_read_by_the_harness_from_the_run_folder(project: Path):
    import yaml

    from sllm_tune.tasks.build import build

    folder, _ = prepared(project)
    config = yaml.safe_load((folder / "tasks" / "clauses.yaml").read_text())
    assert config["dataset_kwargs"] == {
        "data_files": {name: f"tasks/clauses/{name}.parquet" for name in ("train", "validation", "test")}
    }
    built = build(config, root=folder)
    split = split_of(project, folder)
    for docs, name in ((built.eval_docs, "test"), (built.training_docs(), "train")):
        assert sorted(doc["id"] for doc in docs) == sorted(map(row_id, split[name]))


def test_nothing_but_data_and_tasks_is_left_in_the_run_folder(project: Path):
    folder, _ = prepared(project)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        ".sllm_tune.json",
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
    assert said.endswith(
        " tokens).\n  Raise data.max_length, or shorten the prompt in the task file.\n"
        "  Or leave such rows out, counted, with data.on_long: drop."
    )
    folder, card = prepared(project, "data.on_long=drop")
    entry = card["clauses"]
    assert entry["too_long_dropped"] >= 24  # of all splits
    assert entry["rows"] == accounted_for(entry) + entry["too_long_dropped"]
    for split in SPLITS:
        examples = read_jsonl(folder / "data" / f"{split}.jsonl")
        assert len(examples) == entry["splits"][split]["rows"] == len(split_of(project, folder)[split])
        assert all(example["tokens"] <= 256 for example in examples)


def window(project: Path, tokens: int) -> None:
    """Let the base read only so many tokens."""
    file = Path(load_recipe(project).base_model.path) / "config.json"
    copied = project.parent / "short-base"
    shutil.copytree(file.parent, copied)
    config = json.loads(file.read_text(encoding="utf-8")) | {"max_position_embeddings": tokens}
    (copied / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = project.read_text(encoding="utf-8").replace(str(file.parent), str(copied))
    project.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("tokens", "max_length"), [(50, 256), (50, 51), (60, 100_000), (1, 256)])
def test_rows_longer_than_the_window_of_the_base_are_refused_whatever_max_length_is(
    project: Path, tokens: int, max_length: int
):
    window(project, tokens)
    said = refusal(project, f"data.max_length={max_length}")
    assert f"rows are longer than the base's window of {tokens} tokens (the longest has " in said


def test_the_window_is_what_the_tokenizer_says_where_that_is_less(project: Path):
    window(project, 4096)
    file = project.parent / "short-base" / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"model_max_length": 40}
    file.write_text(json.dumps(config), encoding="utf-8")
    assert "rows are longer than the base's window of 40 tokens" in refusal(project)


def test_items_of_a_task_that_is_only_graded_are_held_against_the_window(project: Path):
    rows = read_jsonl(project.parents[1] / "data" / "skies.jsonl")
    rows[1]["question"] += " And so on." * 60
    rows[2]["colours"][1] += " and so on" * 60  # a long choice that is not the answer
    rows[2]["answer"] = rows[2]["colours"][0]
    write_rows(project.parents[1] / "data" / "skies.jsonl", rows)
    window(project, 256)
    assert refusal(project).startswith(f"skies: 2 of {len(rows)} rows are longer than the base's window of 256 tokens")
    _, card = prepared(project, "data.on_long=drop")
    assert card["skies"]["too_long_dropped"] == 2
    assert card["skies"]["splits"]["test"]["rows"] == len(rows) - 2


def test_as_many_shots_are_shown_as_fit_the_window(project: Path, tiny_tokenizer: Any):
    from sllm_tune.data.examples import graded_length, shots_that_fit
    from sllm_tune.tasks.build import build
    from sllm_tune.tasks.encode import Encoder

    folder, _ = prepared(project)
    config = yaml.safe_load((folder / "tasks" / "clauses.yaml").read_text(encoding="utf-8"))
    built: Any = build(config, root=folder)
    docs = [dict(doc) for doc in built.eval_docs]
    whole = Encoder(tiny_tokenizer, chat_template=True)
    built.set_config("num_fewshot", 2)
    built.set_fewshot_seed(0)
    two = max(graded_length(built, doc, whole, 2) for doc in docs)
    fits = {limit: Encoder(tiny_tokenizer, chat_template=True, window=limit) for limit in (two, two - 1, 20)}
    assert shots_that_fit(built, docs, fits[two], 2) == 2
    assert shots_that_fit(built, docs, fits[two - 1], 2) == 1
    assert shots_that_fit(built, docs, fits[20], 2) == 0
    assert shots_that_fit(built, docs, whole, 5) == 5


def test_keys_that_leave_fewer_than_two_groups_are_refused(project: Path):
    write_rows(source(project), [{**row, "question": "the same"} for row in clause_rows()])
    assert refusal(project) == (
        "clauses: split_by 'question' leaves fewer than two groups (1), so nothing can be held out.\n"
        "  Name a column with more values in metadata.split_by."
    )


def test_a_key_that_is_no_column_is_refused(project: Path):
    edit_task(project, "[question, clause]", "[document]")
    assert refusal(project) == (
        "clauses: metadata.split_by names 'document', which is not a column; "
        "there are ['binding', 'clause', 'question']."
    )


def test_a_template_that_is_no_jinja_does_not_fit_or_reaches_for_python_is_refused(project: Path):
    said = {}
    for number, key in enumerate(("{{clause[:3}}", "{{document[:3]}}", "{{clause.__class__}}")):
        edit_task(project, "[question, clause]", f"['{key}']")
        said[number] = refusal(project).removeprefix(f"clauses: the template {key!r} in metadata.split_by ")
    assert said[0].startswith("is not valid Jinja: unexpected '}'")
    assert said[1] == "does not fit a row with ['binding', 'clause', 'question'] ('document' is undefined)."
    assert said[2].startswith("reaches for Python internals and was stopped (access to attribute '__class__'")


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


def test_records_are_those_of_the_recorded_file_and_another_file_holds_rows(project: Path):
    entries = {f"{n}": row for n, row in enumerate(clause_rows())}
    source(project).with_suffix(".json").write_text(json.dumps(entries))
    records = "records: {key: number, columns: [question, clause, binding]}"
    edit_task(project, "clauses.jsonl", f"clauses.json\n  {records}")
    _, card = prepared(project)
    assert (card["clauses"]["rows"], card["clauses"]["source"]) == (240, "clauses.json")
    _, card = prepared(project, f"data.source={{clauses: {source(project)}}}")
    assert (card["clauses"]["rows"], card["clauses"]["source"]) == (240, "clauses.jsonl")


def test_the_records_of_a_task_are_named_by_its_file_where_they_do_not_fit(project: Path):
    edit_task(project, "licence: CC0-1.0", "licence: CC0-1.0\n  records: {key: number, columns: [question]}")
    with pytest.raises(TaskError, match=r"clauses\.yaml: metadata\.records: describes a \.json or \.xml file, and "):
        prepared(project)


def test_groups_are_counted_and_drawn_by_the_value_of_a_template(project: Path):
    import yaml

    from sllm_tune.answer.items import choose_items
    from sllm_tune.tasks.build import build

    key = "{{clause.split()[1]}}"  # the party
    split = "[question, clause]\n  split: {train: 0.5, validation: 0.2, test: 0.3}"
    edit_task(project, split, f"['{key}']\n  split: {{train: 0.4, validation: 0.2, test: 0.4}}")
    folder, card = prepared(project, "data.allow_leaks=[clauses]")
    splits = card["clauses"]["splits"]
    assert {name: (splits[name]["groups"], splits[name]["rows"]) for name in SPLITS} == {
        "train": ({key: 2}, 96),
        "validation": ({key: 1}, 48),
        "test": ({key: 2}, 96),
    }
    config = yaml.safe_load((folder / "tasks" / "clauses.yaml").read_text())
    built = build({**config, "test_split": "train"}, root=folder)
    graded = choose_items("clauses", built, None, [key], 42)
    groups = graded.groups
    assert groups is not None
    parties = [doc["prompt"].split()[2] for doc in graded.docs]
    assert len(set(zip(groups.tolist(), parties, strict=True))) == len(set(parties)) == 2


def test_a_refusal_leaves_what_was_made_before(project: Path):
    folder, _ = prepared(project)
    before = (folder / "data" / "train.jsonl").read_bytes()
    with pytest.raises(DataError):
        prepared(project, "data.max_length=10")
    assert (folder / "data" / "train.jsonl").read_bytes() == before
    assert (folder / "prepare" / "manifest.json").exists()


def test_a_chat_template_that_is_not_only_appended_to_is_refused_by_prepare(
    project: Path, tiny_base: Path, make_tokenizer: Any
):
    base = project.parents[2] / "base"
    shutil.copytree(tiny_base, base)
    thinks = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    make_tokenizer(chat_template=thinks).save_pretrained(base)
    with pytest.raises(ModelError, match="shows an answered question differently"):
        prepared(project, f"base_model.path={base}")


# --- general examples against forgetting


@pytest.fixture
def replayed(project: Path) -> Path:
    """The recipe with a task of 30 rows that can be mixed in."""
    task = CLAUSES_TASK.replace("task: clauses", "task: weather").replace("clauses.jsonl", "weather.jsonl")
    (project.parents[1] / "general" / "tasks" / "weather.yaml").write_text(task)
    rows = [{"question": f"Weather {n}?", "clause": f"On day {n} it rains.", "binding": n % 2 == 0} for n in range(30)]
    write_rows(source(project).with_name("weather.jsonl"), rows)
    return project


def test_general_examples_are_mixed_in_by_their_share(replayed: Path):
    folder, card = prepared(replayed, "data.replay={tasks: [weather], share: 0.2}")
    tasks = Counter(example["task"] for example in read_jsonl(folder / "data" / "train.jsonl"))
    assert tasks == {"clauses": 60, "weather": 15}
    assert card["weather"]["splits"]["train"]["rows"] == 15
    assert card["weather"]["over_limit_dropped"] == 15
    mixed_in = json.loads((folder / "data" / "card.json").read_text())["replayed"]
    assert mixed_in == {"share": 0.2, "examples": 15, "replies": 0}
    assert {example["task"] for example in read_jsonl(folder / "data" / "validation.jsonl")} == {"clauses"}


def test_too_few_general_examples_are_refused(replayed: Path):
    assert refusal(replayed, "data.replay={tasks: [weather], share: 0.5}") == (
        "data.replay: weather has 30 training rows, 60 are needed for a share of 0.5.\n"
        "  Lower data.replay.share, or name more tasks."
    )


def test_what_is_graded_cannot_be_mixed_in(replayed: Path):
    with pytest.raises(RecipeError, match=r"data\.replay\.tasks: names 'skies', which the recipe trains on or grades"):
        load_recipe(replayed, ["data.replay={tasks: [skies], share: 0.2}"])


# --- by date, and from the hub


def test_rows_are_held_out_by_date_where_the_task_says_so(project: Path):
    rows = [{**row, "day": f"20{20 + n % 6}-06-01"} for n, row in enumerate(clause_rows())]
    write_rows(source(project), rows)
    edit_task(
        project, "split_by: [question, clause]", "split_after: {field: day, validation: 2023-01-01, test: 2024-01-01}"
    )
    folder, card = prepared(project, "data.allow_leaks=[clauses]")
    split = split_of(project, folder)
    assert {name: sorted({row["day"][:4] for row in split[name]}) for name in SPLITS} == {
        "train": ["2020", "2021", "2022"],
        "validation": ["2023"],
        "test": ["2024", "2025"],
    }
    assert accounted_for(card["clauses"]) == 240


HUB_TASK = CLAUSES_TASK.replace("task: clauses", "task: clauses\ndataset_path: example/clauses").replace(
    "  source: ../../data/clauses.jsonl\n", ""
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = clause_rows()
    parts = {"train": rows[:150], "validation": rows[150:180], "test": [*rows[180:], rows[0]]}
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, *a, split=None, **o: (
            datasets.Dataset.from_list(parts[split]) if path == "example/clauses" else real(path, *a, split=split, **o)
        ),
    )


def write_hub_task(project: Path, text: str, *drop: str) -> None:
    for part in drop:
        assert part in text
        text = text.replace(part, "")
    (project.parent / "tasks" / "clauses.yaml").write_text(text)


NAMED = "training_split: train\nvalidation_split: validation\ntest_split: test\nmetric_list"


def test_a_task_file_can_name_a_data_set_of_the_hub_and_keep_its_splits(project: Path, hub: None):
    own_split = "  split_by: [question, clause]\n  split: {train: 0.5, validation: 0.2, test: 0.3}\n"
    write_hub_task(project, HUB_TASK.replace("metric_list", NAMED), own_split)
    _, card = prepared(project, "data.allow_leaks=[clauses]")
    entry = card["clauses"]
    assert {name: split["rows"] for name, split in entry["splits"].items()} == {
        "train": 149,  # the row that is also in the test split stays there
        "validation": 30,
        "test": 61,
    }
    assert (entry["source"], entry["rows"], entry["duplicates_dropped"]) == ("example/clauses", 241, 1)


def test_of_a_hub_data_set_that_is_only_graded_the_test_split_is_used(project: Path, hub: None):
    own_split = "  split_by: [question, clause]\n  split: {train: 0.5, validation: 0.2, test: 0.3}\n"
    text = HUB_TASK.replace("metric_list", NAMED).replace("task: clauses", "task: graded").replace(own_split, "")
    (project.parent / "tasks" / "graded.yaml").write_text(text)
    _, card = prepared(project, "evaluate.domain=[clauses, graded]", "data.allow_leaks=[clauses, graded]")
    assert {name: split["rows"] for name, split in card["graded"]["splits"].items()} == {"test": 61}


def test_the_rows_of_a_hub_data_set_can_be_split_anew(project: Path, hub: None):
    write_hub_task(project, HUB_TASK.replace("metric_list", "training_split: train\ntest_split: test\nmetric_list"))
    _, card = prepared(project)
    assert card["clauses"]["rows"] == 211
    assert accounted_for(card["clauses"]) == 211


def test_a_data_set_without_named_splits_is_refused(project: Path, hub: None):
    own_split = "  split_by: [question, clause]\n  split: {train: 0.5, validation: 0.2, test: 0.3}\n"
    write_hub_task(project, HUB_TASK, own_split)
    with pytest.raises(TaskError, match="names no training_split and test_split of example/clauses"):
        prepared(project)


def test_a_data_set_that_cannot_be_had_is_refused_with_the_way_around(project: Path):
    write_hub_task(project, HUB_TASK.replace("metric_list", NAMED))
    with pytest.raises(TaskError, match="example/clauses cannot be loaded from the hub") as caught:
        prepared(project)
    assert "data.source.clauses=FILE" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["csv", "json", "parquet", "../data/clauses", "/data/clauses", "hf://a/b", "a/b/c", "*"]
)
def test_a_data_set_that_is_no_name_of_the_hub_is_refused(project: Path, hub: None, name: str):
    text = HUB_TASK.replace("dataset_path: example/clauses", f"dataset_path: '{name}'")
    write_hub_task(project, text.replace("metric_list", NAMED))
    with pytest.raises(TaskError, match="is not a data set of the hub") as caught:
        prepared(project)
    assert "name it in metadata.source" in str(caught.value)


def test_files_that_the_harness_names_by_whole_paths_are_read_and_followed(project: Path, tmp_path: Path):
    for split, rows in (("train", clause_rows()[:150]), ("test", clause_rows()[150:])):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    files = "dataset_path: json\ndataset_kwargs: {data_files: {train: FOLDER/train.jsonl, test: FOLDER/test.jsonl}}"
    text = HUB_TASK.replace("dataset_path: example/clauses", files)
    text = text.replace("metric_list", NAMED.replace("validation_split: validation\n", ""))
    write_hub_task(project, text.replace("FOLDER", str(tmp_path)))
    recipe = load_recipe(project)
    given = stage_inputs(recipe, Base(section=recipe.base_model, folder=recipe.folder))
    assert given.file[str(tmp_path / "test.jsonl")]
    assert prepared(project)[1]["clauses"]["rows"] == 240
    write_hub_task(project, text.replace("FOLDER", "."))
    with pytest.raises(TaskError, match=r"is not a data set of the hub.\n.*data_files whole paths"):
        prepared(project)


@pytest.mark.parametrize("name", ["example/clauses", "clauses"])
def test_a_folder_where_the_command_was_started_is_not_taken_for_a_data_set(
    project: Path, hub: None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    write_hub_task(project, HUB_TASK.replace("example/clauses", name).replace("metric_list", NAMED))
    with pytest.raises(TaskError, match=f"dataset_path '{name}' names a data set of the hub, and .*/here/{name} would"):
        prepared(project)


# --- a task that the harness ships


@pytest.mark.parametrize("task", ["openbookqa", "piqa", "boolq"])
def test_a_folder_where_the_command_was_started_is_not_taken_for_the_data_of_a_shipped_task(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lm_eval.tasks._yaml_loader import load_yaml

    from sllm_tune.tasks.find import manager
    from sllm_tune.tasks.shipped import build_shipped

    name = load_yaml(manager().task_index[task].yaml_path, resolve_func=False)["dataset_path"]
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TaskError, match=f"^task '{task}' of lm-eval: dataset_path '{name}' names a data set of the hub"
    ):
        build_shipped(task)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows(n_rows: int) -> Any:
        choices = {"text": ["rock", "tree"], "label": ["A", "B"]}
        made = [
            {"question_stem": f"Which {n} of {n_rows}?", "choices": choices, "answerKey": "AB"[n % 2]}
            for n in range(n_rows)
        ]
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
    assert {name: split["rows"] for name, split in entry["splits"].items()} == {
        "train": 30,
        "validation": 8,
        "test": 10,
    }
    assert (entry["rows"], entry["over_limit_dropped"]) == (58, 10)
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
