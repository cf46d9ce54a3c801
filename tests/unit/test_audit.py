"""What prepare finds in rows: rows that do not fit, personal data, and leaks into what is graded."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CLAUSES_TASK, clause_rows, write_rows

from sllm_tune import pipeline
from sllm_tune.data.checks import personal_data
from sllm_tune.data.leaks import drop_leaks
from sllm_tune.data.part import Part
from sllm_tune.data.splits import empty
from sllm_tune.errors import DataError, TaskError
from sllm_tune.recipe.recipe import load_recipe
from sllm_tune.runs.files import read_jsonl
from sllm_tune.tasks.find import TaskFile

CLAUSES = [
    "The supplier shall deliver the goods to the warehouse of the buyer within thirty days after the order was placed",
    "Either party may end this agreement by giving the other party sixty days notice in writing at its office",
    "임차인은 임대인의 서면 동의 없이 이 계약에 따른 권리나 의무를 제삼자에게 양도하거나 담보로 제공할 수 없다",
]


def part(name: str, role: str, **splits: list[dict[str, Any]]) -> Part:
    task = TaskFile(name, Path(f"{name}.yaml"), {"metadata": {"split_by": ["clause"]}})
    built = SimpleNamespace(config=SimpleNamespace(doc_to_text="Clause: {{clause}}\nQuestion: {{question}}"))
    return Part(task, role, built, {**empty(), **splits})


def row(clause: str, question: str = "Is the supplier bound by it?") -> dict[str, Any]:
    return {"clause": clause, "question": question, "answer": "Yes"}


UNRELATED = row("Nothing in this section limits what the insurer owes to a third party under the law of the state")


def found(train: list[dict[str, Any]], *, on_leak: str = "drop", allowed: tuple[str, ...] = ()) -> tuple[Any, Part]:
    learned = part("clauses", "train", train=[UNRELATED, *train], test=[row(clause) for clause in CLAUSES])
    return drop_leaks([learned], on_leak=on_leak, allowed=allowed), learned


# --- leaks


@pytest.mark.parametrize("clause", CLAUSES)
def test_an_item_pasted_into_training_is_dropped(clause: str):
    report, learned = found([row(clause)])
    assert report["clauses"]["found"]["the whole item"] == {"exact": 1}
    assert learned.split["train"] == [UNRELATED]
    assert learned.card["leaks_dropped"] == 1


@pytest.mark.parametrize("clause", CLAUSES)
def test_an_item_with_a_tenth_of_its_words_changed_is_dropped(clause: str):
    words = clause.split()
    words[len(words) // 2] = "zzz"
    report, learned = found([row(" ".join(words))])
    assert report["clauses"]["found"]["clause"] == {"near": 1}
    assert learned.split["train"] == [UNRELATED]


@pytest.mark.parametrize("clause", CLAUSES)
def test_only_the_clause_of_an_item_is_enough(clause: str):
    report, learned = found([row(clause, "What else does the paragraph say about money, time and place of work?")])
    assert report["clauses"]["found"]["clause"] == {"exact": 1}
    assert learned.split["train"] == [UNRELATED]


def test_nothing_is_found_where_nothing_leaks():
    report, learned = found([])
    assert report == {}
    assert (learned.split["train"], learned.card["leaks_dropped"]) == ([UNRELATED], 0)


def test_a_leak_is_refused_with_both_texts_and_the_ways_out():
    with pytest.raises(DataError) as caught:
        found([row(CLAUSES[0])], on_leak="refuse")
    said = str(caught.value)
    assert said.startswith("clauses: 1 training rows leak into what clauses grades (the whole item), for example\n")
    assert said.count("The supplier shall deliver the goods") == 2
    assert "data.on_leak: drop" in said
    assert "data.allow_leaks: [clauses]" in said


def test_an_allowed_leak_is_kept_and_listed():
    report, learned = found([row(CLAUSES[0])], on_leak="refuse", allowed=("clauses",))
    assert report["clauses"] == {"found": {"the whole item": {"exact": 1}, "clause": {"exact": 1}}, "allowed": True}
    assert len(learned.split["train"]) == 2


def test_a_general_task_is_looked_at_too():
    learned = part("clauses", "train", train=[UNRELATED, row(CLAUSES[1])])
    general = part("skies", "grade", test=[row(CLAUSES[1])])
    assert drop_leaks([learned, general], on_leak="drop", allowed=())["skies"]["allowed"] is False
    assert learned.split["train"] == [UNRELATED]


def test_training_rows_that_all_leak_are_refused():
    learned = part("clauses", "train", train=[row(CLAUSES[1])], test=[row(CLAUSES[1])])
    with pytest.raises(DataError, match="clauses: every training row leaks into what is graded, so none is left"):
        drop_leaks([learned], on_leak="drop", allowed=())


# --- personal data


PRIVATE = [
    {"text": "Call 010-1234-5678 before noon.", "more": [{"mail": "Write to kim@example.com, please."}]},
    {"text": "No number here, section 12 of 1998 applies.", "more": []},
]


def test_personal_data_is_counted_and_left():
    rows, card = personal_data(PRIVATE, "report", "en", "calls")
    assert rows == PRIVATE
    assert card == {"policy": "report", "rows": 1, "kinds": {"email": 1, "phone": 1}}


def test_personal_data_is_redacted_wherever_it_stands_in_a_row():
    rows, card = personal_data(PRIVATE, "redact", "en", "calls")
    assert rows[0] == {"text": "Call [PHONE] before noon.", "more": [{"mail": "Write to [EMAIL], please."}]}
    assert rows[1] == PRIVATE[1]
    assert card["rows"] == 1


def test_personal_data_is_refused_without_showing_it():
    with pytest.raises(DataError) as caught:
        personal_data(PRIVATE, "refuse", "en", "calls")
    assert str(caught.value) == (
        "calls: personal data in 1 of 2 rows (email 1, phone 1), first in row 1.\n"
        "  Take it out of the rows, or set data.pii: redact."
    )


# --- in the stage


def prepared(project: Path, rows: list[Any], *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    write_rows(project.parents[1] / "data" / "clauses.jsonl", rows)
    folder = project.parents[2] / "run"
    pipeline.prepare(load_recipe(project, overrides), folder)
    card = json.loads((folder / "data" / "card.json").read_text(encoding="utf-8"))
    return card, read_jsonl(folder / "data" / "train.jsonl")


def skip_bad_rows(project: Path, policy: str = "skip") -> None:
    text = CLAUSES_TASK.replace("licence: CC0-1.0", f"licence: CC0-1.0\n  on_bad_row: {policy}")
    (project.parent / "tasks" / "clauses.yaml").write_text(text)


def test_bad_rows_are_skipped_and_counted_where_the_task_file_says_so(project: Path):
    good = clause_rows()
    bad = [{"question": "No clause?", "binding": True}, {**good[0], "clause": 7}, {**good[1], "question": None}]
    skip_bad_rows(project)
    card, _ = prepared(project, [bad[0], *good, *bad[1:]])
    entry = card["tasks"]["clauses"]
    assert (entry["rows"], entry["bad_rows_skipped"]) == (243, 2)  # a null is a value; the template prints it


def test_a_bad_row_ends_the_run_otherwise(project: Path):
    with pytest.raises(TaskError, match="clauses, row 241 of"):
        prepared(project, [*clause_rows(), {"question": "No clause?", "binding": True}])


def test_rows_none_of_which_fits_are_refused_though_bad_rows_are_skipped(project: Path):
    skip_bad_rows(project)
    with pytest.raises(TaskError, match=r"clauses: no row of .* fits .*clauses\.yaml\.\n  clauses, row 1 of"):
        prepared(project, [{"question": "No clause?", "binding": True}] * 300)


def test_what_is_done_with_bad_rows_is_one_of_two_things(project: Path):
    skip_bad_rows(project, "drop")
    with pytest.raises(TaskError, match=r"metadata\.on_bad_row: must be .fail. or .skip. \(got .drop.\)"):
        prepared(project, clause_rows())


def test_personal_data_of_a_recipe_is_redacted_in_every_split(project: Path):
    rows = clause_rows()
    for made in rows:
        made["clause"] += " Call 010-1234-5678."
    card, train = prepared(project, rows, "data.pii=redact", "data.allow_leaks=[clauses]")
    assert card["tasks"]["clauses"]["personal_data"] == {"policy": "redact", "rows": 240, "kinds": {"phone": 240}}
    assert all("[PHONE]" in made["prompt"] and "5678" not in made["prompt"] for made in train)
