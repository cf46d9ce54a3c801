"""What results say of everyday instructions and general prose, from what was kept of specialist and base."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from sllm_tune.answer.general import general_texts
from sllm_tune.answer.instructions import instructions
from sllm_tune.evaluate.everyday import NAME, Asked, choose_instructions, everyday, losses_of
from sllm_tune.evaluate.schema import Everyday

BASE_REPLY, LABEL = "1. Apple\n2. Pear\n3. Fig", "No."


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., Path]:
    """Grades as evaluation keeps them: the specialist replies to every third instruction with a label."""

    def keep(*, show_items: bool = True) -> Path:
        asked = Asked(instructions(), {"Yes", "No"}, tmp_path, show_items)
        (tmp_path / "samples" / NAME).mkdir(parents=True)
        (tmp_path / "prose").mkdir()
        for name in ("base", "specialised"):
            said = [LABEL if name == "specialised" and n % 3 == 0 else BASE_REPLY for n in range(100)]
            write_rows(tmp_path / "samples" / NAME / f"{name}.jsonl", asked.grades(said))
            nats = 1.1 if name == "specialised" else 1.0
            texts = [{"id": text.id, "nats": nats * 100, "tokens": 100} for text in general_texts()]
            write_rows(tmp_path / "prose" / f"{name}.jsonl", texts)
        return tmp_path

    return keep


def test_figures_are_those_of_the_kept_grades(kept: Callable[..., Path]) -> None:
    found = everyday(instructions(), kept(), 0, "en")
    Everyday.model_validate(found)
    some = instructions()[::3]
    lost = [one for one in some if not one.failures(BASE_REPLY) and one.failures(LABEL)]
    won = [one for one in some if one.failures(BASE_REPLY) and not one.failures(LABEL)]  # asked for one word
    followed = {name: figure["value"] for name, figure in found["followed"].items()}
    assert len(lost) > len(won)
    assert followed["base"] - followed["specialised"] == pytest.approx((len(lost) - len(won)) / 100)
    assert (found["difference"]["improved"], found["difference"]["regressed"]) == (len(won), len(lost))
    assert {language: one["n"] for language, one in found["by_language"].items()} == {"en": 60, "ko": 40}
    asked_of = [n for n, one in enumerate(instructions()) if not {"yes", "no"} & set(one.offers)]
    assert found["labels"]["n"] == len(asked_of) == 97
    hits = sum(n % 3 == 0 for n in asked_of)
    assert found["labels"]["shares"]["specialised"]["value"] == hits / 97
    assert found["labels"]["shares"]["base"]["ci95"] == pytest.approx([0, 0.0373], abs=1e-4)
    assert found["labels"]["difference"]["improved"] == hits


def test_perplexity_is_told_by_language_with_the_ratio_to_the_base(kept: Callable[..., Path]) -> None:
    prose = everyday(instructions(), kept(), 0, "en")["prose"]
    assert {language: one["n"] for language, one in prose.items()} == {"en": 12, "ko": 8}
    assert prose["en"]["base"] == pytest.approx(math.e)
    assert prose["en"]["specialised"] == pytest.approx(math.exp(1.1))
    assert prose["en"]["ratio"]["value"] == pytest.approx(math.exp(0.1))
    assert prose["en"]["ratio"]["ci95"] == pytest.approx([math.exp(0.1)] * 2)  # every text rose by the same


def test_a_text_that_one_of_both_does_not_read_whole_is_left_out_of_both(kept: Callable[..., Path]) -> None:
    folder = kept()
    file = folder / "prose" / "specialised.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[3:13]))  # one of the Korean ones is left
    prose = everyday(instructions(), folder, 0, "en")["prose"]
    assert {language: one["n"] for language, one in prose.items()} == {"en": 9}


@pytest.mark.parametrize("language", ["en", "ko"])
def test_replies_shown_begin_with_the_first_instruction_and_what_only_the_base_follows(
    kept: Callable[..., Path], language: str
) -> None:
    shown = everyday(instructions(), kept(), 0, language)["replies"]
    assert shown[0]["id"] == f"{language}-01"
    assert len(shown) == 8
    lost = [reply["followed"] == ["base"] for reply in shown[1:]]
    assert lost == sorted(lost, reverse=True)


def test_no_reply_is_kept_or_shown_where_items_are_not_to_be(kept: Callable[..., Path]) -> None:
    folder = kept(show_items=False)
    assert everyday(instructions(), folder, 0, "en")["replies"] == []
    assert "Apple" not in (folder / "samples" / NAME / "base.jsonl").read_text()


def test_the_gate_sees_the_loss_of_instructions_and_the_share_of_labels(kept: Callable[..., Path]) -> None:
    found: dict[str, Any] = everyday(instructions(), kept(), 0, "en")
    losses = losses_of(found)
    low, high = found["difference"]["ci95"]
    assert losses["max_instruction_loss"].value == -found["difference"]["value"] > 0
    assert losses["max_instruction_loss"].ci95 == (-high, -low)
    assert losses["max_label_collapse"].ci95 == tuple(found["labels"]["shares"]["specialised"]["ci95"])


def test_a_limit_takes_the_same_instructions_for_the_same_seed_in_their_order() -> None:
    some = choose_instructions(10, 7)
    assert some == choose_instructions(10, 7) != choose_instructions(10, 8)
    assert [one.id for one in some] == [one.id for one in instructions() if one in some]
    assert choose_instructions(None, 7) == list(instructions())
