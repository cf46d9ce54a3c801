"""Task files: what they may say, what their rows must hold, and the harness's own tasks used as they are."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CLAUSES_TASK, clause_rows, write_rows

from sllm_tune.data.checks import fitting_rows
from sllm_tune.errors import TaskError
from sllm_tune.tasks.build import build, build_in_memory, materialised, resolve, table, write_table
from sllm_tune.tasks.example import example, examples
from sllm_tune.tasks.file import checked
from sllm_tune.tasks.find import TaskFile, find_task
from sllm_tune.tasks.shipped import build_shipped

ROWS = [{"question": "Q", "clause": "C", "binding": True}]


def task_file(project: Path, text: str = CLAUSES_TASK) -> Path:
    path = project.parent / "tasks" / "clauses.yaml"
    path.write_text(text)
    return path


def edited(project: Path, old: str, new: str) -> Any:
    """The clauses task with `old` replaced in its file."""
    assert old in CLAUSES_TASK
    task_file(project, CLAUSES_TASK.replace(old, new))
    return find_task("clauses", project.parent)


def refusal(project: Path, task: Any, rows: list[dict[str, Any]] = ROWS) -> str:
    """What is said when `rows` are put to `task`, with the folder of the project left out."""
    with pytest.raises(TaskError) as caught:
        fitting_rows(task, rows, "data/clauses.jsonl", skip=False)
    return str(caught.value).replace(f"{project.parents[2]}{os.sep}", "")


# --- task files


def test_a_task_is_looked_for_in_the_domain_then_in_general(project: Path):
    assert find_task("clauses", project.parent).path == project.parent / "tasks" / "clauses.yaml"
    assert find_task("skies", project.parent).path == project.parents[1] / "general" / "tasks" / "skies.yaml"


def test_an_unknown_task_is_refused_with_the_nearest_names(project: Path):
    with pytest.raises(TaskError) as caught:
        find_task("clauzes", project.parent)
    said = str(caught.value)
    assert said.startswith(f"task 'clauzes' is neither in {project.parent / 'tasks'}, ")
    assert " nor one that lm-eval ships. Nearest: clauses" in said
    with pytest.raises(TaskError, match=r"Nearest: openbookqa"):
        find_task("openbook_qa", project.parent)


def test_a_group_of_tasks_is_refused_with_tasks_to_name_instead(project: Path):
    with pytest.raises(TaskError) as caught:
        find_task("mmlu", project.parent)
    assert str(caught.value).startswith(
        "task 'mmlu' is a group of tasks in lm-eval; name its tasks one by one, such as"
    )


def test_a_task_name_reaches_no_other_folder(project: Path):
    (project.parent / "secret.yaml").write_text(CLAUSES_TASK)
    with pytest.raises(TaskError, match=r"task '\.\./secret' is neither in"):
        find_task("../secret", project.parent)


def test_code_in_a_task_file_is_refused(project: Path):
    with pytest.raises(TaskError) as caught:
        edited(project, 'doc_to_target: "{{ 0 if binding else 1 }}"', "doc_to_target: !function utils.target")
    said = str(caught.value).removeprefix(str(project.parent))
    assert said.startswith("/tasks/clauses.yaml: line 9, column 16: could not determine a constructor for the tag")
    assert said.endswith("a task file of a domain folder holds no code")


def test_a_task_file_that_lacks_keys_is_refused_with_all_of_them(project: Path):
    path = task_file(project, "task: clauses\noutput_type: multiple_choice\n")
    with pytest.raises(TaskError) as caught:
        find_task("clauses", project.parent)
    keys = ("doc_to_text", "doc_to_target", "metric_list")
    assert str(caught.value) == f"{path}: " + "\n  ".join(f"{key}: required" for key in keys)
    task_file(project, CLAUSES_TASK.replace("  source: ../../data/clauses.jsonl\n", ""))
    with pytest.raises(TaskError, match=r"clauses\.yaml: no metadata\.source or dataset_path\.$"):
        find_task("clauses", project.parent)


def test_a_task_file_that_is_no_mapping_is_refused(project: Path):
    task_file(project, "- task\n")
    with pytest.raises(TaskError, match=r"clauses\.yaml: must be a mapping, such as "):
        find_task("clauses", project.parent)


@pytest.mark.parametrize("generation", ["{}", "{max_gen_toks: 5}", "{until: ['']}"])
def test_a_written_answer_that_would_end_before_it_begins_is_refused(generation: str):
    text = CLAUSES_TASK.replace("multiple_choice", "generate_until").replace('doc_to_choice: ["Yes", "No"]\n', "")
    values = yaml.safe_load(f"{text}fewshot_delimiter: ''\ngeneration_kwargs: {generation}\n")
    with pytest.raises(TaskError, match=r"^t\.yaml: (fewshot_delimiter: is empty|generation_kwargs\.until: must be)"):
        checked(values, "t.yaml")
    assert checked({**values, "generation_kwargs": {"until": ["###"]}}, "t.yaml")
    assert checked({**values, "generation_kwargs": {"until": []}}, "t.yaml")


def test_an_unknown_key_of_a_task_file_is_refused_with_the_nearest(project: Path):
    with pytest.raises(TaskError, match=r"clauses\.yaml: doc_to_choices: unknown key; did you mean 'doc_to_choice'\?"):
        edited(project, "doc_to_choice:", "doc_to_choices:")


@pytest.mark.parametrize("metric", ["metric: accc", "metric: acc\n    hf_evaluate: true"])
def test_a_metric_that_would_be_fetched_from_the_hub_and_run_is_refused(project: Path, metric: str):
    task = edited(project, "metric: acc", metric)
    assert refusal(project, task).startswith("recipes/legal/tasks/clauses.yaml: 'acc")
    assert "is not a metric of lm-eval; did you mean 'acc'?" in refusal(project, task)


# --- rows and templates


def test_a_row_without_a_column_is_named_with_the_field_that_reads_it(project: Path):
    rows = [*clause_rows(), {"question": "Q", "binding": False}]
    assert refusal(project, find_task("clauses", project.parent), rows) == (
        "clauses, row 241 of data/clauses.jsonl: no 'clause'.\n"
        "  doc_to_text in recipes/legal/tasks/clauses.yaml reads it; this row has ['binding', 'question'].\n"
        "  Fix the row or the template, or say what a missing value is, as {{ note or '' }} does."
    )


def test_a_column_that_no_row_has_is_noticed_at_the_first(project: Path):
    task = edited(project, "{{clause}}", "{{claws}}")
    assert refusal(project, task).startswith("clauses, row 1 of data/clauses.jsonl: no 'claws'.\n  doc_to_text in")


def test_a_key_that_a_nested_column_lacks_is_named(project: Path):
    task = edited(project, "{{clause}}", "{{question.text}}")
    rows = [{"question": {"txt": "Q"}, "clause": "C", "binding": True}]
    assert "row 1 of data/clauses.jsonl: no \"'dict object' has no attribute 'text'\"" in refusal(project, task, rows)


def test_an_answer_that_is_none_of_the_choices_is_refused(project: Path):
    task = edited(project, "{{ 0 if binding else 1 }}", "{{ binding }}")
    rows = [{**ROWS[0], "binding": "Yes"}, {**ROWS[0], "binding": "Maybe"}]
    assert refusal(project, task, rows) == (
        "clauses, row 2 of data/clauses.jsonl: the answer 'Maybe' is none of the choices ['Yes', 'No'].\n"
        "  Fix the row or recipes/legal/tasks/clauses.yaml."
    )
    assert "the answer '2' is none of the choices" in refusal(
        project, edited(project, "0 if binding else 1", "0 if binding else 2"), [*ROWS, {**ROWS[0], "binding": False}]
    )


def test_an_empty_answer_is_refused(project: Path):
    written = CLAUSES_TASK.replace("multiple_choice", "generate_until").replace("metric: acc", "metric: exact_match")
    written = written.replace('doc_to_choice: ["Yes", "No"]\n', "").replace(
        "{{ 0 if binding else 1 }}", "{{ binding }}"
    )
    task_file(project, written)
    rows = [{**ROWS[0], "binding": "Yes"}, {**ROWS[0], "binding": " "}]
    assert refusal(project, find_task("clauses", project.parent), rows) == (
        "clauses, row 2 of data/clauses.jsonl: an answer is empty.\n  Fix the row or recipes/legal/tasks/clauses.yaml."
    )


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("doc_to_text", "{{clause}}", "{% if clause %}"),
        ("doc_to_text", "{{clause}}", "{{ clause | nofilter }}"),
        ("doc_to_choice", '["Yes", "No"]', '"{% for %}"'),
        ("doc_to_target", "{{ 0 if binding else 1 }}", "{{ 0 if }}"),
    ],
)
def test_a_template_that_is_not_jinja_is_refused_when_the_file_is_read(project: Path, field: str, old: str, new: str):
    with pytest.raises(TaskError, match=rf"clauses\.yaml: {field}: a template is not valid Jinja: "):
        edited(project, old, new)


def test_choices_that_are_not_a_list_are_refused(project: Path):
    task = edited(project, '["Yes", "No"]', '"{{clause}}"')
    assert "row 1 of data/clauses.jsonl: doc_to_choice does not make a list of choices but 'C'" in refusal(
        project, task
    )


@pytest.mark.parametrize(
    "reach", ["{{ ''.__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ clause.format.__globals__ }}"]
)
def test_a_prompt_that_reaches_for_python_internals_is_stopped(project: Path, reach: str):
    task = edited(project, "{{clause}}", reach)
    assert refusal(project, task).startswith(
        "recipes/legal/tasks/clauses.yaml: a template reaches for Python internals and was stopped (access to attribute"
    )


def test_choices_that_reach_for_python_internals_are_stopped(project: Path):
    task = edited(project, '["Yes", "No"]', "\"{{ ''.__class__.__mro__ }}\"")
    assert "a template reaches for Python internals and was stopped" in refusal(project, task)


def test_the_harness_renders_every_template_in_the_sandbox(project: Path):
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    build_in_memory(find_task("clauses", project.parent), ROWS)
    assert isinstance(utils.env, ImmutableSandboxedEnvironment)
    with pytest.raises(SecurityError):
        utils.apply_template("{{ ''.__class__.__mro__ }}", {})
    assert utils.apply_template("{{ a | regex_replace('b', 'c') }}\n", {"a": "abc"}) == "acc\n"


@pytest.mark.parametrize("value", [2.5, "2", [2], {"a": 1, "b": None}, None])
def test_a_column_that_no_template_reads_may_hold_anything(project: Path, value: Any):
    rows = [{**ROWS[0], "n": 1}, {**ROWS[0], "n": {"a": 1}}, {**ROWS[0], "n": value}]
    assert fitting_rows(find_task("clauses", project.parent), rows, "data", skip=False)[1] == [0, 1, 2]


def test_a_table_for_a_shipped_task_keeps_every_value_or_is_refused(project: Path):
    task = TaskFile("boolq", None, {})
    for value in [2.5, "2", [2]]:
        with pytest.raises(TaskError, match=r"row \d of data: 'n' does not go together with the other rows' \(it is "):
            table(task, [{"n": 1}, {"n": None}, {"n": value}], "data")


def test_the_harness_reads_from_the_run_folder_what_was_written(project: Path, tmp_path: Path):
    # What its own reader of JSON would change: a date, a number that is text, a column only some rows have.
    rows = [{**row, "clause": f"2020-01-{10 + n % 10}", "n": n or "0.5"} for n, row in enumerate(clause_rows()[:30])]
    rows[3]["note"] = "only here"
    task = find_task("clauses", project.parent)
    docs, _ = materialised(task, rows, "")
    files = {"train": "train.parquet", "test": "test.parquet"}
    write_table(docs[:20], tmp_path / "train.parquet")
    write_table(docs[20:], tmp_path / "test.parquet")
    built = build(resolve(task, files), root=tmp_path)
    assert list(built.training_docs()) == docs[:20]
    assert list(built.eval_docs) == docs[20:]
    assert built.doc_to_text(built.eval_docs[0]).startswith("Clause: 2020-01-10\n")


# --- what is trained


def test_an_example_is_the_prompt_and_the_answer_that_the_harness_grades(project: Path):
    built = build_in_memory(find_task("clauses", project.parent), ROWS)
    prompt = "Clause: C\nQuestion: Q\nAnswer Yes or No."
    assert example(built, ROWS[0], None) == {"prompt": prompt, "context": prompt, "target": " Yes", "label": "Yes"}

    def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return f"<{messages}{add_generation_prompt}>"

    shown = example(built, {**ROWS[0], "binding": False}, template)
    assert shown["context"] == f"<{[{'role': 'user', 'content': prompt}]}True>"
    assert (shown["target"], shown["label"]) == ("No", "No")


def test_of_several_right_answers_each_is_taught(project: Path):
    task = edited(project, '"{{ 0 if binding else 1 }}"', "right")
    rows = [{**ROWS[0], "right": [1, 0]}]
    built = build_in_memory(task, rows)
    assert [one["label"] for one in examples(built, rows[0], None)] == ["No", "Yes"]


# --- tasks that the harness ships


@pytest.fixture
def openbookqa(monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenBookQA with three rows a split, in the columns of the hub's."""
    import datasets

    def rows(split: str) -> Any:
        choices = {"text": ["rock", "tree", "cloud", "river"], "label": ["A", "B", "C", "D"]}
        keys = ["B", "D", "A"]
        made = [{"question_stem": f"{split} {k}", "choices": choices, "answerKey": k} for k in keys]
        return datasets.Dataset.from_list(made)

    data = datasets.DatasetDict({split: rows(split) for split in ("train", "validation", "test")})
    asked: list[Any] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda **options: asked.append(options) or data)
    return asked


def test_a_task_that_the_harness_ships_is_found_by_its_name(project: Path):
    task = find_task("openbookqa", project.parent)
    assert (task.path, task.config, task.metadata) == (None, {"task": "openbookqa"}, {})


def test_a_task_that_the_harness_ships_makes_training_examples(openbookqa: Any):
    built = build_shipped("openbookqa")
    assert openbookqa[0]["path"] == "allenai/openbookqa"
    made = [example(built, row, None) for row in built.training_docs()]
    assert [one["target"] for one in made] == [" tree", " river", " rock"]
    assert [one["context"] for one in made] == ["train B", "train D", "train A"]


def test_a_shipped_task_whose_rows_cannot_be_had_is_refused():
    with pytest.raises(TaskError) as caught:
        build_shipped("openbookqa")
    assert str(caught.value).startswith("task 'openbookqa' of lm-eval: its data cannot be loaded (")


def question_rows(n: int) -> list[dict[str, Any]]:
    """In the columns of OpenBookQA on the hub."""
    choices = {"text": ["rock", "tree", "cloud", "river"], "label": ["A", "B", "C", "D"]}
    return [
        {"question_stem": f"Which is number {i}?", "choices": choices, "answerKey": "ABCD"[i % 4]} for i in range(n)
    ]


def test_a_shipped_task_reads_the_rows_of_a_local_file_dealt_out_to_its_splits(tmp_path: Path):
    write_rows(tmp_path / "mine.jsonl", question_rows(14))
    built = build_shipped("openbookqa", tmp_path / "mine.jsonl")
    splits = {"test": built.test_docs(), "validation": built.validation_docs(), "train": built.training_docs()}
    assert {name: len(docs) for name, docs in splits.items()} == {"test": 4, "validation": 2, "train": 8}
    assert len({doc["question_stem"] for docs in splits.values() for doc in docs}) == 14
    assert example(built, built.test_docs()[0], None)["target"] == " rock"


def test_a_task_that_grades_its_validation_rows_gets_no_third_split_from_a_local_file(tmp_path: Path):
    rows = [{"question": f"Q{i}", **dict.fromkeys(("opa", "opb", "opc", "opd"), "x"), "cop": i % 4} for i in range(12)]
    write_rows(tmp_path / "mine.jsonl", rows)
    built = build_shipped("medmcqa", tmp_path / "mine.jsonl")
    assert (len(built.training_docs()), len(built.test_docs())) == (8, 4)
    assert list(built.test_docs()) == list(built.validation_docs())


def test_a_local_file_without_a_column_that_a_shipped_task_reads_is_refused_with_the_columns(tmp_path: Path):
    rows = [{"question": f"Q{i}", "cop": 1} for i in range(8)]
    write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(TaskError) as caught:
        build_shipped("medmcqa", tmp_path / "mine.jsonl")
    first, fix = str(caught.value).split("\n")
    assert first == f"{tmp_path}/mine.jsonl: its rows do not fit task 'medmcqa' of lm-eval (KeyError: 'opa')."
    assert fix == "  They need the columns of openlifescienceai/medmcqa; the first row has ['cop', 'question']."


def test_a_local_file_too_short_for_the_splits_of_a_shipped_task_is_refused(tmp_path: Path):
    write_rows(tmp_path / "mine.jsonl", question_rows(6))
    with pytest.raises(TaskError, match=r"mine\.jsonl: 6 rows, too few for the splits of task 'openbookqa'"):
        build_shipped("openbookqa", tmp_path / "mine.jsonl")


def test_prepare_and_evaluate_depend_on_the_local_file_of_a_shipped_task(project: Path, tmp_path: Path):
    from sllm_tune import load_recipe, pipeline
    from sllm_tune.model.find import Base
    from sllm_tune.runs.folder import Run

    rows = tmp_path / "mine.jsonl"
    write_rows(rows, question_rows(14))
    recipe = load_recipe(project, ["evaluate.general=[openbookqa]", f"data.source.openbookqa={rows}"])
    given = recipe, Base(section=recipe.base_model, folder=recipe.folder), Run(tmp_path / "run")
    for inputs in (pipeline.STAGES["prepare"].inputs, pipeline.STAGES["evaluate"].inputs):
        before = inputs(*given).flat()
        write_rows(rows, question_rows(15))
        after = inputs(*given).flat()
        assert [key for key in after if after[key] != before[key]] == [f"file.{rows}"]
        write_rows(rows, question_rows(14))
