"""Whatever a task file says: it is taken, or refused with the file and a short message; never a traceback."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm_tune.data.checks import fitting_rows
from sllm_tune.data.rehearse import answer_faults, rehearse
from sllm_tune.data.splits import split_rows
from sllm_tune.errors import BadInput
from sllm_tune.tasks.build import build_over
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import item_text
from sllm_tune.tasks.file import TaskConfig, read_task_file
from sllm_tune.tasks.find import TaskFile
from sllm_tune.tasks.templates import prompt_values

EXAMPLES = int(os.environ.get("SLLM_TUNE_FUZZ_EXAMPLES", "150"))
CHOICE: dict[str, Any] = {
    "task": "t",
    "output_type": "multiple_choice",
    "doc_to_text": "Clause: {{clause}}",
    "doc_to_choice": ["Yes", "No"],
    "doc_to_target": "{{ 0 if binding else 1 }}",
    "description": "Answer.",
    "gen_prefix": "So:",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {
        "version": 1.0,
        "source": "rows.jsonl",
        "licence": "CC0-1.0",
        "split_by": ["clause"],
        "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
    },
}
WRITTEN: dict[str, Any] = {
    "task": "t",
    "output_type": "generate_until",
    "doc_to_text": "{{clause}}",
    "doc_to_target": "{{party}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0},
    "filter_list": [
        {"name": "a", "filter": [{"function": "regex", "regex_pattern": "(.*)"}, {"function": "take_first"}]}
    ],
    "metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["x"], "ignore_case": True}],
    "metadata": {"source": "rows.jsonl", "on_bad_row": "skip", "records": {"key": "k", "columns": ["a"]}},
}
TEMPLATES = [
    "",
    " ",
    "clause",
    "binding",
    "labels",
    "nothing",
    "{{nothing}}",
    "{{ labels }}",
    "{{ labels[7] }}",
    "{{ clause | upper | trim }}",
    "{{ 1 / 0 }}",
    "{{ clause.__class__ }}",
    "{{ clause.__init__.__globals__ }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**10**10 }}",
    "{% set x = namespace(v='a') %}{% for a in range(99) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'x' %}",
    "{% for %}",
    "{{ clause | nofilter }}",
    "{{ clause | regex_replace('(a+)+$', 'b') }}",
    "{{ ('a' * 40 ~ '!') | regex_replace('(a+)+$', 'b') }}",
    "{{ none }}",
    "{{ labels | tojson }}",
    "{{ [1, none] }}",
    "{{ 1 }}",
    "<|im_end|>",
    "['a', 'b']",
    "{{ '%s' | format(1, 2) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ party }}\n\n{{ party }}",
]
REGEXES = ["(a+)+$", "(", "[", "(?P<a>", "a{999999}", "(a{9999}){9999}", ".*", "\\", "(?i)x", "x" * 5000]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.5, 10**30, float("inf"), float("nan"), "x", "é" * 300, "\u2028", "a" * 5000),
    *([], [None], [[]], [1, 2], [True, False], ["a", "a"], ["a", "ab"], ["", "a"], {}, {"a": {}}, {"a": "b"}, {1: 2}),
    *("multiple_choice", "generate_until", "loglikelihood", "acc", "f1", "exact_match", "rouge_l", "mcc", "perplexity"),
    *("mean", "median", "nothing", "!function a.b", "bleu", "take_first", "majority_vote", "regex", "lowercase"),
    *(["\n"], "\n", ["x"] * 100, {"train": 1.0}, {"train": 0.5, "test": 0.5}, {"field": "clause", "after": "2023"}),
    *("skip", "first_n", "label", "0123456789abcdef" * 4, ["{{clause[:3]}}"], ["{{clause.__class__}}"], "pypi:a==1/b"),
]
KEYS = [*TaskConfig.model_fields, "process_docs", "custom_dataset", "doc_to_image", "repeats", "use_prompt", "include"]
ROWS: list[dict[str, Any]] = [
    {
        "clause": f"The {party} {verb} pay {number}.",
        "party": party,
        "binding": verb == "shall",
        "labels": ["a", "b", number, None],
        "rating": str(number),
    }
    for number, (party, verb) in enumerate([(p, v) for p in ("tenant", "임차인", "aaaa") for v in ("shall", "may")] * 2)
]


@st.composite
def task_files(draw: st.DrawFn) -> Any:
    """A task of choices or of written answers, with one to three of its values changed."""
    config = json.loads(json.dumps(draw(st.sampled_from([CHOICE, WRITTEN]))))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = config
        while True:
            place = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if not (isinstance(node[place], dict | list) and node[place] and draw(st.integers(0, 3))):
                break
            node = node[place]
        how = draw(st.sampled_from(["value", "template", "template", "regex", "drop", "add"]))
        if how == "drop":
            del node[place]
        elif how == "add" and isinstance(node, dict):
            node[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(VALUES + TEMPLATES)))
        else:
            kinds = {"template": TEMPLATES, "regex": REGEXES}
            node[place] = copy.deepcopy(draw(st.sampled_from(kinds.get(how, VALUES))))
        if not config:
            break
    return config


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Any) -> Encoder:
    return Encoder(tiny_tokenizer, chat_template=True, window=2048, rows=len(tiny_tokenizer))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(task_files())
def test_any_value_anywhere_in_a_task_file_is_taken_or_refused_with_a_message(
    here: Path, encoder: Encoder, config: Any
) -> None:
    file = here / "t.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    try:
        task = TaskFile("t", file, read_task_file(file))
        assert len(task.sha256) == 64
        skip = task.metadata.get("on_bad_row") == "skip"
        fault = answer_faults(task.config, encoder)
        built, fitting = fitting_rows(task, ROWS, "rows.jsonl", skip=skip, fault=fault)
        rows = [ROWS[place] for place in fitting]
        for row in rows:
            assert isinstance(item_text(built, row), str)
            assert all(isinstance(value, str) for value in prompt_values(task.config["doc_to_text"], row))
        split_rows(rows, task.metadata, 1, "t")
        graded = build_over(task, rows)
        rehearse("t", graded, [dict(doc) for doc in graded.eval_docs])
    except BadInput as error:
        said = str(error)
        assert len(said) < 3000, said
        assert "t.yaml" in said or said.startswith(("t:", "t,")) or "template" in said, said
    assert sorted(path.name for path in here.iterdir()) == ["t.yaml"]
