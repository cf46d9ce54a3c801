"""The report shows what every step of a resize cost and what it cut, in both forms and both languages."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from test_report import make_results, text_of, texts, words_of

from sllm_tune.report import render

IMPORTANCE = [0.62, *(0.25 - 0.007 * layer for layer in range(1, 28)), 0.09, 0.31]
KEPT = [*range(20), 28, 29]


def measured(parameters: int, speed: float, perplexity: float, domain: float, general: float) -> dict[str, Any]:
    scores = {
        "openbookqa": {"kind": "general", "value": general, "n": 100},
        "privacy_qa": {"kind": "domain", "value": domain, "n": 80},
    }
    return {
        "parameters": parameters,
        "bytes": 2 * parameters,
        "tokens_per_second": speed,
        "perplexity": perplexity,
        "scores": scores,
        "seconds": 12.5,
    }


BASE = {"kind": "base", **measured(134_515_008, 1500.0, 12.5, 0.49, 0.33)}
TRIM = {
    "kind": "trim_vocabulary",
    "keep_first": 0,
    "tokens": 21_000,
    "tokens_before": 49_152,
    **measured(118_299_456, 1550.0, 12.5, 0.49, 0.31),
}
DEPTH = {
    "kind": "prune_depth",
    "keep": 22,
    "method": "block_influence",
    "layers": KEPT,
    "importance": IMPORTANCE,
    **measured(89_979_264, 2100.0, 48_213.7, 0.47, 0.26),
}
WIDTH = {
    "kind": "prune_width",
    "intermediate_size": 1_152,
    "num_attention_heads": 6,
    "hidden_size": None,
    "kv_heads": [[0, 2], [1, 2]],
    "importance_of_heads": [[3.0, 1.0, 2.0], [1.0, 2.0, 1.0]],
    **measured(74_000_000, 2400.0, 1e300, 0.41, 0.24),
}
DISTILL = {
    "kind": "distill",
    "divergence": "forward_kl",
    "share": 0.5,
    "tokens": "all",
    "healed_tokens": 612_000,
    "loss": 1.2345,
    **measured(74_000_000, 2400.0, 15.25, 0.48, 0.27),
}
UPSCALE = {
    "kind": "upscale_depth",
    "overlap": 8,
    "layers": [*range(22), *range(8, 30)],
    **measured(184_067_328, 1050.0, 14.0, 0.48, 0.31),
}
STEPS = [BASE, TRIM, DEPTH, WIDTH, DISTILL]


def resized(*steps: dict[str, Any], language: str = "en") -> dict[str, Any]:
    return make_results(language) | {"resize": list(steps)}


def drawing(page: str, key: str) -> str:
    found = re.search(rf'<svg class="plot[^>]*aria-labelledby="plot-{key}">.*?\n</svg>', page, re.S)
    assert found
    return found[0]


def test_every_step_is_a_row_with_its_price_beside_the_base() -> None:
    markdown = words_of(render(resized(*STEPS))[1])
    for row in (
        "| Base model | 134.5 M | | 269.0 MB | 1,500 | | 12.50 | 0.490 | 0.330 |",
        "| Vocabulary: 49,152 to 21,000 tokens | 118.3 M | −12.1 % | 236.6 MB | 1,550 | × 1.03 | 12.50 | 0.490 |",
        "| Layers: 30 to 22, by Block Influence | 90.0 M | −33.1 % | 180.0 MB | 2,100 | × 1.40 | 48,213.70 | 0.470 |",
        "to 1,152 neurons, 6 query heads | 74.0 M | −45.0 % | 148.0 MB | 2,400 | × 1.60 | 1.0e+300 |",
        "| Healed on 612,000 tokens (forward KL to the base, weight 0.5; last loss 1.234) | 74.0 M | −45.0 % |",
        "privacy_qa (domain, 80 items) | openbookqa (general ability, 100 items) |",
    ):
        assert row in markdown


def test_scores_are_said_to_be_the_price_of_a_cut_and_not_of_what_is_shipped() -> None:
    for seen in texts(resized(*STEPS)):
        assert "What was made smaller" in seen
        assert "Scores are from before specialising, on at most 100 validation items of each domain task" in seen
        assert "they show what a cut costs, not what is shipped" in seen


@pytest.mark.parametrize("language", ["en", "ko"])
def test_page_and_markdown_show_the_same_figures_of_a_resize(language: str) -> None:
    def figures(text: str) -> set[str]:
        return set(re.findall(r"[+\N{MINUS SIGN}]?\d[\d,]*\.?\d*", text))

    page, markdown = texts(resized(*STEPS, UPSCALE, language=language))
    assert figures(page) == figures(markdown)
    assert {"49,152", "−12.1", "0.061", "612,000", "80"} <= figures(page)


def test_korean_says_what_each_step_did() -> None:
    for seen in texts(resized(*STEPS, language="ko")):
        for said in (
            "모델 축소 과정",
            "어휘: 토큰 49,152개 → 21,000개",
            "레이어: 30개 → 22개(블록 영향도 기준)",
            "모든 레이어의 폭 축소: 뉴런 1,152개, 쿼리 헤드 6개",
            "토큰 612,000개로 복원 학습",
            "−33.1%",
            "1.40배",
            "전체 30개 레이어 중 8개를 제거했습니다: 20~27.",
        ):
            assert said in seen


@pytest.mark.parametrize("steps", [None, [], [BASE]])
def test_no_section_without_a_step(steps: list[dict[str, Any]] | None) -> None:
    without = make_results()
    assert render(without | {"resize": steps}) == render(without)
    assert "made smaller" not in "".join(render(without))


def test_a_step_of_an_unknown_kind_is_named_with_its_figures() -> None:
    bare = {"kind": "fit_<b>|", "max_bytes": 1}
    page, markdown = render(resized(*STEPS, {**DISTILL, "kind": "fit_to_size"}, bare))
    assert "| fit to size | 74.0 M | −45.0 % |" in words_of(markdown)
    assert "fit &lt;b&gt;| " not in markdown
    assert "fit &lt;b&gt;" in page
    assert "<b>|" not in page + markdown
    assert "plot-waterfall" not in page  # the last step has no size
    assert "not measured" in markdown


def test_a_search_and_stored_bits_are_told_in_words() -> None:
    row = {"layers": 22, "intermediate_size": 1536, "tokens": 49_152, "parameters": 1, "loss": 2.0}
    tried = [{**row, "layers": 30, "chosen": False}, {**row, "chosen": True}]
    search = {
        "kind": "fit",
        "max_parameters": 110_000_000,
        "tried": tried,
        **measured(106_000_000, 2e3, 20.0, 0.4, 0.3),
    }
    bits = {"kind": "quantize", "quantization": {"load_in_4bit": True}, **measured(106_000_000, 9e2, 21.0, 0.4, 0.3)}
    _, markdown = render(resized(BASE, search, bits))
    assert "The best of 2 sizes under the limit: 22 layers, 1,536 neurons each, 49,152 tokens" in markdown
    assert "Weights stored in 4 bits" in markdown


def test_the_waterfall_goes_down_from_the_base_to_the_result() -> None:
    plot = drawing(render(resized(*STEPS))[0], "waterfall")
    bars = [tuple(map(float, bar)) for bar in re.findall(r'<rect x="([\d.]+)%" y="\d+" width="([\d.]+)%"', plot)]
    ticks = {float(x): label for x, label in re.findall(r'<text class="tick" x="([\d.]+)%"[^>]*>([\d.,]+ ?M?)<', plot)}
    assert bars[0][0] == bars[-1][0] == 0
    assert len(bars) == 5  # base, three cuts, result; healing changes no size
    for before, after in pairwise(bars[1:-1]):
        assert sum(after) == pytest.approx(before[0], abs=0.02)
    assert sum(bars[1]) == pytest.approx(bars[0][1], abs=0.02)
    assert bars[-2][0] == pytest.approx(bars[-1][1], abs=0.02)
    full = float(ticks[100.0].removesuffix(" M"))
    assert bars[0][1] / 100 * full == pytest.approx(134.515, abs=0.02)
    assert bars[-1][1] / 100 * full == pytest.approx(74.0, abs=0.02)


def test_an_upscaled_model_is_not_called_smaller_and_its_bar_goes_up() -> None:
    page, markdown = render(resized(BASE, UPSCALE))
    assert "What was changed in size" in page
    assert "made smaller" not in page + markdown
    assert "| Layers: 30 to 44, two overlapping copies stacked | 184.1 M | +36.8 % |" in words_of(markdown)
    plot = drawing(page, "waterfall")
    assert '<g class="ours more">' in plot
    bars = [tuple(map(float, bar)) for bar in re.findall(r'<rect x="([\d.]+)%" y="\d+" width="([\d.]+)%"', plot)]
    assert bars[1][0] == bars[0][1]
    assert sum(bars[1]) == pytest.approx(bars[2][1], abs=0.02)


def test_importance_has_a_mark_a_layer_told_apart_by_shape() -> None:
    page, markdown = render(resized(BASE, DEPTH))
    plot = drawing(page, "importance-1")
    assert plot.count("<circle") == 22
    assert plot.count('class="cross"') == 8
    assert "Block Influence: 1 − cosine" in text_of(page)
    assert "<title>layer 20, dropped: 0.11</title>" in plot
    assert "<title>layer 28, kept: 0.09</title>" in plot
    for seen in (text_of(page), words_of(markdown)):
        assert (
            "8 of 30 layers dropped: 20 to 27. "
            "Their Block Influence is 0.061 to 0.11, that of the kept ones 0.09 to 0.62."
        ) in seen


def test_layers_without_importance_lie_below_the_axis() -> None:
    by_loss = {**DEPTH, "method": "loss", "importance": [None if i in KEPT else 0.01 * i for i in range(30)]}
    block = {**DEPTH, "method": "angular_distance"}
    block["importance"] = [0.3] * 22 + [0.12] + [None] * 7
    block["layers"] = [*range(22)]
    page, _ = render(resized(BASE, by_loss, block))
    first, second = drawing(page, "importance-1"), drawing(page, "importance-2")
    assert first.count('cy="230"') == 22
    assert second.count("<circle") == 22
    assert "each time the one that cost least; the loss on training examples changed by 0.2 to 0.27 nats" in page
    assert "one that begins at layer 22 turns its input least: 0.12." in page
    assert page.count("Marks below the axis") == 2


@pytest.mark.parametrize("importance", [None, [None] * 30, [math.nan] * 30])
def test_without_importance_there_is_no_curve(importance: Any) -> None:
    page, markdown = render(resized(BASE, {**DEPTH, "importance": importance}))
    assert "plot-importance" not in page
    assert "| 90.0 M |" in markdown
    assert not re.search(r"\b(nan|None)\b", page + markdown)


def test_heads_are_told_by_what_they_hold() -> None:
    for seen in texts(resized(BASE, WIDTH)):
        assert "In every layer 2 of 3 groups of attention heads were kept" in seen
        assert ": 80 % of the measured importance." in seen
    plain = {**WIDTH, "importance_of_heads": None}
    assert "In every layer 2 groups of attention heads were kept" in render(resized(BASE, plain))[1]
    assert "attention heads" not in render(resized(BASE, {**WIDTH, "kv_heads": None}))[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_figure_of_a_step_that_is_not_finite_is_never_shown(bad: float | None) -> None:
    step = {**DISTILL, "loss": bad, "scores": {}}
    step |= dict.fromkeys(("parameters", "bytes", "tokens_per_second", "perplexity"), bad)
    for seen in render(resized(BASE, step)):
        assert not re.search(r"\b(nan|inf|None)\b", seen)
        assert "not measured" in seen


def test_a_healing_without_the_base_says_so() -> None:
    assert "(cross-entropy alone; last loss 1.234)" in render(resized(BASE, {**DISTILL, "share": 0.0}))[1]
