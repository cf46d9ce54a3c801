"""Whatever rows, bytes and templates come: a clear error, or every row kept or counted; never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sllm_tune.data.checks import fitting_rows
from sllm_tune.data.splits import split_rows
from sllm_tune.errors import SllmTuneError
from sllm_tune.rows.read import read_rows, row_id
from sllm_tune.tasks.build import materialised
from sllm_tune.tasks.example import example
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.render import as_text

TASK: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "Clause: {{clause}}",
    "doc_to_choice": ["Yes", "No"],
    "doc_to_target": "{{ 0 if binding else 1 }}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0, "source": "rows.jsonl", "licence": "CC0-1.0"},
}
FREE = TASK | {"output_type": "generate_until", "doc_to_target": "{{clause}}"}
del FREE["doc_to_choice"]

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
good = st.fixed_dictionaries({"clause": st.text(min_size=1, max_size=20), "binding": st.booleans()})
strange = st.dictionaries(st.sampled_from(["clause", "binding", "", "조항"]) | st.text(max_size=4), values, max_size=4)
many = st.lists(st.one_of(good, good, strange), min_size=1, max_size=8)
quick = settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def task(path: Path, config: dict[str, Any]) -> TaskFile:
    return TaskFile("clauses", path / "clauses.yaml", config)


@pytest.mark.parametrize("config", [TASK, FREE], ids=["choices", "text"])
@quick
@given(rows=many)
def test_rows_of_any_shape_are_kept_or_counted_or_refused(
    tmp_path_factory: Any, config: dict[str, Any], rows: list[Any]
):
    made = task(Path("recipes"), config)
    try:
        built, fitting = fitting_rows(made, rows, "rows.jsonl", skip=True)
    except SllmTuneError as error:
        assert "clauses" in str(error)
        return
    assert fitting == sorted(set(fitting))
    docs, _ = materialised(made, [rows[place] for place in fitting], "")
    for place, doc in zip(fitting, docs, strict=True):
        assert doc["prompt"] == f"Clause: {as_text(rows[place]['clause'])}"
        shown = example(built, rows[place], None)
        assert (shown["prompt"], shown["label"]) == (doc["prompt"], doc["label"])


@quick
@given(rows=many)
def test_without_skipping_all_rows_are_kept_or_the_first_bad_one_is_named(rows: list[Any]):
    try:
        built, fitting = fitting_rows(task(Path("recipes"), TASK), rows, "rows.jsonl", skip=False)
    except SllmTuneError as error:
        assert "row " in str(error) or "clauses.yaml" in str(error)
        return
    assert fitting == list(range(len(rows)))
    assert all(example(built, row, None)["label"] in ("Yes", "No") for row in rows)


@quick
@given(
    rows=st.lists(good, max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp949", "latin-1"]),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv"]),
    cut=st.integers(0, 60),
    noise=st.binary(max_size=3),
)
def test_bytes_of_any_kind_are_rows_or_a_clear_error(
    tmp_path_factory: Any, rows: list[Any], encoding: str, suffix: str, cut: int, noise: bytes
):
    path = tmp_path_factory.mktemp("bytes") / f"rows{suffix}"
    text = json.dumps(rows, ensure_ascii=False) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    if suffix in (".csv", ".tsv"):
        text = "clause,binding\n" + "\n".join(f"{row['clause']},{row['binding']}" for row in rows)
    raw = text.encode(encoding, errors="replace")
    path.write_bytes(raw[: len(raw) - cut] + noise + raw[len(raw) - cut :])
    try:
        found = read_rows(path)
    except SllmTuneError as error:
        assert path.name in str(error)
        return
    assert all(isinstance(row, dict) for row in found)


@quick
@given(
    template=st.text(max_size=20)
    | st.sampled_from(
        ["{{", "{% if %}", "{{ clause.__class__ }}", "{{ clause[0][1][2] }}", "{{ 1/0 }}", "{{ missing }}"]
    )
    | st.builds("{{{{ {} }}}}".format, st.text(max_size=10))
)
def test_templates_of_any_kind_make_a_prompt_or_a_clear_error(template: str):
    config = TASK | {"doc_to_text": template}
    rows = [{"clause": "The tenant shall pay.", "binding": True}, {"clause": "The tenant may leave.", "binding": False}]
    try:
        built, _ = fitting_rows(task(Path("recipes"), config), rows, "rows.jsonl", skip=False)
    except SllmTuneError as error:
        assert "clauses" in str(error)
        return
    assert built.doc_to_text(rows[0]) is not None


@quick
@given(
    rows=many,
    metadata=st.fixed_dictionaries(
        {},
        optional={
            "split_by": st.lists(
                st.sampled_from(["clause", "binding", "조항", "{{clause[:2]}}", "{{", "{{x.y}}"]), max_size=2
            ),
            "split": st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.floats(-1, 2), max_size=3),
            "split_after": st.dictionaries(
                st.sampled_from(["field", "validation", "test"]), st.text(max_size=10), max_size=3
            ),
        },
    ),
)
def test_splits_of_any_kind_hold_every_row_at_most_once_or_are_refused(rows: list[Any], metadata: dict[str, Any]):
    distinct = list({row_id(row): row for row in rows}.values())
    try:
        split = split_rows(distinct, metadata, 42, "clauses")
    except SllmTuneError as error:
        assert "clauses" in str(error)
        return
    kept = [row_id(row) for part in split.values() for row in part]
    assert len(kept) == len(set(kept)) <= len(distinct)
