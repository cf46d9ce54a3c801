"""Rules of form: for each, replies that keep it and replies that do not, in English and Korean."""

import unicodedata

import pytest

from sllm_tune.answer.rules import RULES, is_degenerate, is_echo, normal, tidy

KEPT_AND_BROKEN: dict[str, list[tuple[object, list[str], list[str]]]] = {
    "words": [(1, ["Cold.", "차갑다.", "don't"], ["It is cold.", "아주 차갑다"])],
    "words_at_least": [(3, ["The sea is wide.", "바다는 아주 넓다."], ["The sea.", "바다는 넓다."])],
    "words_at_most": [(3, ["A wide sea.", "아주 넓은 바다."], ["The sea is wide.", "바다는 아주 넓고 깊다.", "..."])],
    "sentences": [
        (
            1,
            ["It costs 3.50 a piece.", "Dr. Park reads.", "책을 빌려주는 곳이다.", "no full stop"],
            ["One. Two.", "?!"],
        ),
        (
            2,
            ["One. Two.", "하나다. 둘이다!", "Really?! Yes.", 'He said "go." Then he went'],
            ["One.", "One. Two. Three."],
        ),
        (3, ["1. One.\n2. Two.\n3. Three."], ["1. One.\n2. Two."]),
    ],
    "sentences_at_most": [(2, ["One.", "One. Two."], ["One. Two. Three.", "!"])],
    "lines": [(2, ["a\nb", "a\n\nb\n"], ["a", "a\nb\nc"])],
    "paragraphs": [(2, ["a\nb\n\nc", "a\n \n\nc"], ["a\nb", "a\n\nb\n\nc"])],
    "question_marks": [(2, ["Who? When?", "누가？ 언제?"], ["Who?", "Who? When? Why?"])],
    "mentions": [
        (["로봇", 2], ["로봇은 로봇이다.", "로봇과 로봇"], ["로봇은 기계다."]),
        (["robot", 2], ["Robots, robots"], ["a bot"]),
    ],
    "items": [
        (
            3,
            [
                "Apple, banana and orange.",
                "Apples, bananas, and oranges",
                "Three fruits are: apple, pear, fig.",
                "1. Apple\n2. Pear\n3. Fig",
                "Sure, here are three fruits:\n\n* Apple\n* Pear\n* Fig",
                "Apple\nPear\nFig",
                "사과, 배, 감",
                "사과와 배와 감",
                "사과, 배 그리고 감입니다.",
                "**Three fruits:**\nApple\nPear\nFig",
            ],
            ["No", "Apple and pear.", "1. Apple\n2. Pear", "사과", "Apple, pear, fig, plum", "Fruit:"],
        )
    ],
    "comma_list": [
        (
            3,
            ["red, green, blue", "빨강, 파랑, 노랑", "rain, snow, sun."],
            ["red, green", "red\ngreen, blue, a", "a, , b"],
        ),
        (2, ["a, b"], ["I like the first of all of the colours, blue"]),
    ],
    "numbered_list": [
        (2, ["1. Tea\n2. Milk", "1) Tea\n2) Milk", "Steps:\n1. Tea\n2. Milk", "**1.** Tea\n**2.** Milk"], ["1. Tea"]),
        (3, ["1. a\n\n2. b\n\n3. c"], ["1. a\n3. b\n2. c", "2. a\n3. b\n4. c", "a\nb\nc", "1. a 2. b 3. c"]),
    ],
    "bullets": [(2, ["- a\n- b", "* a\n* b", "Here:\n• a\n• b"], ["- a", "-a\n-b", "1. a\n2. b", "- a\n- b\n- c"])],
    "table": [
        (
            2,
            ["| a | b |\n|---|:-:|\n| c | d |"],
            ["| a | b |\n| c | d |", "| a | b |\n|---|---|", "a | b", "|a|\n|-|\n|b|"],
        )
    ],
    "json_object": [
        (
            ["name", "age"],
            ['{"name": "A", "age": 3}', '```json\n{"age": 1, "name": 2}\n```'],
            ['{"name": 1}', "[1]", "no"],
        ),
        (["이름"], ['{"이름": "가"}'], ['{"이름": 1, "나이": 2}', "Here: {}", '{"이름": }', "[" * 100_000]),
    ],
    "json_array": [(2, ['["a", "b"]', "```\n[1, 2]\n```"], ["[1]", '{"a": 1, "b": 2}', "1, 2"])],
    "starts_with": [
        ("Dear friend", ["Dear friend, come!", "dear friend come"], ["Dear friend", "My Dear friend, come"])
    ],
    "ends_with": [("이상입니다.", ["비를 막아요. 이상입니다."], ["이상입니다.", "이상입니다. 끝."])],
    "first_word": [
        (
            ["yes", "no"],
            ["Yes, it is one.", "no: they cannot fly"],
            ["Yes.", "No", "It is, yes, it is", "Nobody can do that"],
        ),
        (
            ["예", "아니요"],
            ["예, 스스로 빛나기 때문입니다."],
            ["예.", "예전에는 그렇게 믿었습니다.", "네 그렇고 말고요 참"],
        ),
    ],
    "one_of": [(["drink", "dish"], ["Drink.", "dish", '"Drink"'], ["A drink", "drink or dish", ""])],
    "title": [
        ("<<>>", ["<<Spring>>\nIt is warm."], ["<<Spring>>", "<<>>\nWarm.", "Spring\nWarm.", "<Spring>\nWarm."]),
        ("[]", ["[봄]\n따뜻하다."], ["[봄]", "봄\n따뜻하다."]),
    ],
    "in_quotes": [(True, ['"Hello."', "“안녕”"], ["Hello", '"Hello', '""'])],
    "separated_by": [("******", ["Warm\n******\nFresh"], ["Warm", "Warm ****** Warm", "******", "a******b******c"])],
    "contains": [(["sand", "wave"], ["Waves and sand."], ["Sand.", ""])],
    "without": [
        (["green"], ["A garden of evergreens.", "Red."], ["A Green garden.", "green"]),
        (["초록"], ["푸른 정원"], ["초록빛 정원"]),
    ],
    "without_characters": [("z,", ["A ship"], ["A Zoo", "one, two"])],
    "upper_case": [(True, ["GRASS.", "THEY EAT 2 MEALS"], ["Grass", "123"])],
    "lower_case": [(True, ["a train.", "it is 5 o'clock"], ["A train", "123"])],
    "digits": [(True, ["7", "It has 7."], ["seven"]), (False, ["seven"], ["7"])],
    "placeholders": [(2, ["Dear [name], on [date]"], ["Dear [name]", "[]"])],
    "language": [
        ("ko", ["사과입니다.", "제 이름은 Anna 입니다."], ["Apple", "Apple 사과", "7", ""]),
        ("en", ["Apple", "Seven (7)."], ["사과", "Apple 사과입니다", "7"]),
    ],
}


def _cases(broken: bool) -> list[tuple[str, object, str]]:
    return [
        (name, value, reply)
        for name, cases in KEPT_AND_BROKEN.items()
        for value, good, bad in cases
        for reply in (bad if broken else good)
    ]


def test_every_rule_has_replies_that_keep_it_and_replies_that_break_it():
    assert KEPT_AND_BROKEN.keys() == RULES.keys()
    assert all(good and bad for cases in KEPT_AND_BROKEN.values() for _, good, bad in cases)


@pytest.mark.parametrize(("name", "value", "reply"), _cases(broken=False))
def test_a_reply_of_the_right_form_keeps_the_rule(name: str, value: object, reply: str):
    assert RULES[name](tidy(reply), value)


@pytest.mark.parametrize(("name", "value", "reply"), _cases(broken=True))
def test_a_reply_of_another_form_breaks_the_rule(name: str, value: object, reply: str):
    assert not RULES[name](tidy(reply), value)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "...",
        "No No No No No",
        "no, no, no, no, yes, no",
        "yes no " * 30,
        "The cat sat on the mat and looked at us. " * 4,
        "가" * 60,
        "사과와 배가 있는 집 " * 10,
        "ab" * 40,
    ],
)
def test_a_reply_that_is_empty_or_goes_in_circles_is_degenerate(reply: str):
    assert is_degenerate(tidy(reply))


@pytest.mark.parametrize(
    "reply",
    [
        "No",
        "7",
        "Apple, banana, orange",
        "하나, 둘, 셋, 넷, 다섯",
        "The cat sat on the mat. The dog sat on the mat. The mouse sat under the table and ate a piece of cheese.",
        '{"name": "Ada", "age": 36}',
        "| animal | sound |\n|---|---|\n| cow | moo |\n| dog | woof |\n| cat | meow |",
        "비가 온다 톡톡\n창문을 두드린다\n나는 가만히 듣고\n꽃은 고개를 든다",
    ],
)
def test_an_ordinary_reply_is_not_degenerate(reply: str):
    assert not is_degenerate(tidy(reply))


def test_saying_the_instruction_back_is_an_echo_and_naming_its_subject_is_not():
    asked = "Describe the moon in at least 30 words."
    assert is_echo("Describe the moon in at least 30 words. Describe the moon!", asked)
    assert is_echo("DESCRIBE THE MOON, in at least thirty words", asked)
    assert not is_echo("The moon is a ball of rock that goes around the earth.", asked)
    assert not is_echo("Yes", asked)


def test_composed_and_decomposed_korean_are_the_same_reply():
    assert tidy(unicodedata.normalize("NFD", "사과")) == "사과"
    assert normal(unicodedata.normalize("NFD", "‘사과!’ ")) == normal("사과")


def test_labels_are_compared_without_case_punctuation_and_space():
    assert normal(" NO. ") == normal("no") == normal("**No**")
    assert normal("increase/decrease") != normal("increase")
