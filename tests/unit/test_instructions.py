"""The fixed list of instructions, and what counts as following one."""

from collections import Counter

import pytest
from pydantic import ValidationError

from sllm_tune.answer.instructions import Instruction, instructions, label_replies
from sllm_tune.answer.rules import RULES

ASKED = {one.id: one for one in instructions()}
GOOD = {
    "en-01": "Apple, banana and orange.",
    "en-23": "Yes, it gives its own light.",
    "en-28": '{"name": "Ada", "age": 36}',
    "en-43": "Have a wonderful time in the mountains. See you soon!",
    "en-57": "7",
    "ko-01": "사과, 배, 감",
    "ko-19": "예, 스스로 빛을 내기 때문입니다.",
    "ko-32": "무엇을 좋아하세요? 무엇을 못 드세요?",
    "ko-40": "의사는 아픈 사람을 치료합니다.",
}


def test_the_list_is_sixty_in_english_and_forty_in_korean_each_once():
    assert Counter(one.language for one in instructions()) == {"en": 60, "ko": 40}
    assert len(ASKED) == 100
    assert len({one.text for one in instructions()}) == 100


def test_every_rule_is_asked_for_somewhere():
    assert {rule for one in instructions() for rule in one.rules} == set(RULES)


@pytest.mark.parametrize("name", GOOD)
def test_a_right_reply_follows_its_instruction(name: str):
    assert ASKED[name].failures(GOOD[name]) == []


@pytest.mark.parametrize("reply", ["", "  \n", "...", "\u200b"])
def test_an_empty_reply_follows_no_instruction(reply: str):
    assert [one.id for one in instructions() if not one.failures(reply)] == []


@pytest.mark.parametrize("reply", ["word " * 128, "the cat is on the mat and " * 20, "가나다 " * 60])
def test_the_same_words_again_and_again_follow_no_instruction(reply: str):
    assert [one.id for one in instructions() if not one.failures(reply)] == []


def test_no_instruction_is_followed_by_saying_it_back():
    followed = [one.id for one in instructions() if not one.failures(one.text)]
    assert followed == []


def test_a_bare_label_follows_next_to_nothing():
    for label in ("No", "Yes", "increase", "아니요"):
        assert (
            len([one for one in instructions() if not one.failures(label)]) <= 6
        )  # one-word answers have no wrong word


def test_a_failure_is_named_by_its_rule():
    assert ASKED["en-01"].failures("Apple and pear") == ["items"]
    assert ASKED["en-01"].failures("") == ["degenerate", "items"]


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="no rule is called 'itmes'"):
        Instruction(id="en-01", text="Name three fruits.", rules={"itmes": 3})


def test_a_label_that_nobody_asked_for_is_counted_and_one_that_was_offered_is_left_out():
    asked = [ASKED["en-01"], ASKED["en-23"], ASKED["en-26"], ASKED["ko-19"]]
    said = ["No.", "No.", "mouse", "no"]
    assert label_replies(asked, said, ["Yes", "No"]) == [1.0, None, 0.0, 1.0]
    assert label_replies(asked, said, ["예", "아니요", "..."]) == [0.0, 0.0, 0.0, None]
    assert label_replies(asked, ["apple", "", "", ""], ["Yes", ""]) == [0.0, None, 0.0, 0.0]
