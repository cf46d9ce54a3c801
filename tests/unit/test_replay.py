"""Replies of the base itself beside the domain: what is asked, what is kept of it, and what is trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sllm_tune import load_recipe, pipeline
from sllm_tune.answer.instructions import instructions
from sllm_tune.answer.rules import is_degenerate, is_echo, normal, tidy
from sllm_tune.errors import DataError, RecipeError
from sllm_tune.replay.stage import choose
from sllm_tune.tasks.encode import Encoder

REPLAY = "data.replay={replies: 30, share: 0.2}"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def replayed(project: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(*overrides: str) -> Path:
        pipeline.train(load_recipe(project, [REPLAY, *overrides]), tmp_path / "run")
        return tmp_path / "run"

    return make


def test_nothing_that_is_graded_is_replayed():
    replayed = [text for _, text in choose(240, 0)]
    assert len(set(replayed)) == 240
    graded = {normal(one.text) for one in instructions()}
    assert not graded & {normal(text) for text in replayed}
    assert not [
        text for text in replayed for one in instructions() if is_echo(text, one.text) or is_echo(one.text, text)
    ]


def test_all_instructions_come_before_one_comes_again_and_a_seed_decides_the_order():
    assert choose(10, 1) == choose(240, 1)[:10] == choose(250, 1)[240:]
    assert choose(10, 1) != choose(10, 2)


def test_the_bases_replies_are_mixed_in_by_their_share_and_the_domain_stays(replayed: Callable[..., Path]):
    folder = replayed()
    own, mixed = rows_of(folder / "data" / "train.jsonl"), rows_of(folder / "replay" / "train.jsonl")
    replies = [row for row in mixed if row["task"] == "everyday"]
    assert len(replies) / len(mixed) == pytest.approx(0.2, abs=0.01)
    assert sorted(row["id"] for row in own) == sorted(row["id"] for row in mixed if row["task"] != "everyday")
    assert rows_of(folder / "replay" / "validation.jsonl") == rows_of(folder / "data" / "validation.jsonl")
    assert not [row for row in replies if is_degenerate(tidy(row["target"])) or row["tokens"] > 256]
    card = json.loads((folder / "data" / "card.json").read_text())
    assert card["replayed"] == {"share": 0.2, "examples": len(replies), "replies": len(replies)}
    lineage = json.loads((folder / "train" / "lineage.json").read_text())
    assert "everyday" not in json.dumps(lineage)  # whose rows were learned is asked of the domain's


def test_the_same_seed_gives_the_same_replies_and_another_reply_count_other_ones(replayed: Callable[..., Path]):
    file = replayed() / "replay" / "train.jsonl"
    first = file.read_text()
    file.unlink()
    assert replayed().joinpath("replay", "train.jsonl").read_text() == first
    assert replayed("data.replay.replies=20").joinpath("replay", "train.jsonl").read_text() != first


def test_training_is_skipped_where_nothing_changed_and_runs_again_without_the_replies(
    replayed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    replayed()
    capsys.readouterr()
    replayed()
    assert [line.split(":")[1].split(",")[0] for line in capsys.readouterr().err.splitlines()] == [" skipped"] * 3
    replayed("data.replay=null")
    said = capsys.readouterr().err
    assert "replay:" not in said
    assert "train: replay/train.jsonl" in said


def test_a_reply_that_was_cut_off_is_not_taught_to_stop(tiny_tokenizer: PreTrainedTokenizerBase):
    encoder = Encoder(tiny_tokenizer, chat_template=True)
    context = encoder.render([{"role": "user", "content": "How are you?"}])
    whole, cut = (encoder.supervise(context, "I am", stops=stops) for stops in (True, False))
    assert whole.input_ids == [*cut.input_ids, *encoder.stop_ids]
    assert whole.labels == [*cut.labels, *encoder.stop_ids]


def test_replies_that_the_length_does_not_hold_are_refused_with_the_key(replayed: Callable[..., Path]):
    assert len(choose(1, 124)[0][1].encode()) == 67  # with the template more than the row may have
    with pytest.raises(DataError, match=r"data\.replay\.replies: none of the base's 1 replies can be learned"):
        replayed("data.max_length=75", "data.replay.replies=1", "seed=124")


def test_a_share_of_nothing_is_refused(project: Path):
    with pytest.raises(RecipeError, match=r"data\.replay\.share: needs something to mix in: replies, tasks, or both"):
        load_recipe(project, ["data.replay={share: 0.1}"])
