"""The end of a run in a terminal."""

from pathlib import Path

import pytest
from test_report import make_results

from sllm_tune.evaluate.schema import Results
from sllm_tune.report.terminal import columns, summary


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_end_of_a_run_shows_every_score_and_what_to_do_next(language: str):
    results = Results.model_validate(make_results(language))
    said = summary(results, Path("runs/my run"))
    for name, task in results.tasks.items():
        assert name in said
        for score in task.scores.values():
            assert f"{score.value:.3f}" in said
    assert "sllm-tune ask 'runs/my run' TEXT" in said
    assert "sllm-tune export 'runs/my run'" in said
    assert "sllm-tune publish 'runs/my run'" in said


def testcolumns_stand_below_each_other_in_korean_too():
    lines = summary(Results.model_validate(make_results("ko")), Path("run")).splitlines()
    table = lines[: lines.index("")]
    first = [columns(line[: line.index(sign)]) for line in table for sign in ("0.",) if sign in line]
    assert len(set(first)) == 1


def test_a_name_that_would_steer_the_terminal_is_shown_as_text():
    held = make_results()
    held["tasks"]["a\x1b[2J"] = held["tasks"].pop(next(iter(held["tasks"])))
    assert "\x1b" not in summary(Results.model_validate(held), Path("run"))
