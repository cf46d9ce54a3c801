"""ROUGE-L: the published figure for English, a figure at all for Korean, and a score of every item."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import LM
from rouge_score.rouge_scorer import RougeScorer

from sllm_tune.answer.items import choose_items, score
from sllm_tune.tasks.build import build, build_over, materialised, resolve, write_table
from sllm_tune.tasks.find import find_task
from sllm_tune.tasks.rouge import rouge_l

SUMMARY_TASK = """\
# Shortens a notice; made for the tests.
task: notices
output_type: generate_until
doc_to_text: "Notice: {{notice}}"
doc_to_target: "{{short}}"
generation_kwargs: {until: ["\\n"], do_sample: false}
metric_list:
  - metric: rouge_l
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
  source: ../../data/notices.jsonl
  licence: CC0-1.0
"""
ROWS = [
    {"notice": "The lift is out of order until Monday.", "short": "No lift until Monday."},
    {"notice": "정전으로 승강기를 운행하지 않습니다.", "short": "승강기 운행 중단"},
]


class Fixed(LM):
    """Says the same two sentences whatever it is asked."""

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        return ["There is no lift until Tuesday.", "승강기 점검 중단"][: len(requests)]

    def loglikelihood(self, requests: list[Any], **_: Any) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("reference", "prediction"),
    [
        ("The drug lowered the rate of relapse.", "The drug did not lower the relapse rate."),
        ("A 5-year follow-up, n=120: no difference.", "Follow_up of 5 years showed no difference (n=120)"),
        ("same words", "same words"),
        ("nothing in common", "other text"),
        ("", "an empty reference"),
    ],
)
def test_english_scores_what_rouge_score_says(reference: str, prediction: str):
    expected = RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(references=[reference], predictions=[prediction]) == expected


def test_korean_is_scored_where_the_usual_tokenizer_sees_no_word():
    reference, prediction = "약물은 재발률을 유의하게 낮추었다.", "약물은 재발률을 낮추었다."
    assert RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure == 0
    assert rouge_l(references=[reference], predictions=[prediction]) == pytest.approx(6 / 7)  # 3 of 4 and 3 of 3 words


def test_korean_in_parts_is_the_same_as_korean_in_syllables():
    syllables, parts = "가압류", "\u1100\u1161\u110b\u1161\u11b8\u1105\u1172"
    assert rouge_l(references=[syllables], predictions=[parts]) == 1


def test_a_task_that_writes_text_is_scored_item_by_item(tmp_path: Path):
    (tmp_path / "legal" / "tasks").mkdir(parents=True)
    (tmp_path / "legal" / "tasks" / "notices.yaml").write_text(SUMMARY_TASK)
    task = find_task("notices", tmp_path / "legal")
    built = build_over(task, ROWS)
    assert built.aggregation()["rouge_l"]([0.25, 0.75]) == 0.5

    rows = score(Fixed(), choose_items("notices", built, None, [], 0), chat_template=False)  # pyright: ignore[reportArgumentType]
    assert [row["score"] for row in rows] == pytest.approx([0.6, 2 / 3])
    assert [row["prediction"] for row in rows] == ["There is no lift until Tuesday.", "승강기 점검 중단"]


def test_a_run_folder_s_task_file_knows_the_metric(tmp_path: Path):
    (tmp_path / "legal" / "tasks").mkdir(parents=True)
    (tmp_path / "legal" / "tasks" / "notices.yaml").write_text(SUMMARY_TASK)
    task = find_task("notices", tmp_path / "legal")
    docs, _ = materialised(task, ROWS, "")
    write_table(docs, tmp_path / "test.parquet")
    built = build(resolve(task, {"test": "test.parquet"}), root=tmp_path)
    assert built.process_results(docs[0], ["no lift until monday"]) == {"rouge_l": 1.0}
