"""Rules that a reply can be checked by: of its form only, each a pure function of the reply and what was asked for.

The kinds are those of IFEval (Zhou et al. 2023, arXiv:2311.07911). lm-eval's own rules for it are not used: importing
them downloads nltk's sentence model and needs langdetect, and their sentences, words and capitals are those of English.

Words are what stands between spaces and punctuation; in Korean that is an eojeol, a noun with its particle. Every rule
is given a reply as `tidy` makes it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import cast

WORD = re.compile(r"\w+(?:[.,:'’\-/]\w+)*")
NUMBERED, BULLET = re.compile(r"\s*(?:\*\*)?(\d+)[.)]"), re.compile(r"\s*[-*•·–]\s+\S")
BETWEEN_ITEMS = re.compile(
    r"[,、;]|\s+and\s+|\s+or\s+|\s+&\s+|\s+(?:그리고|및|또는)\s+|(?<=[가-힣])(?:와|과|이랑|랑)\s+"
)
SENTENCE_END = re.compile(r"[.!?。]+[\"'”’)\]]*(?=\s|$)")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e)\.(?=\s)")
FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
BLANK_LINE = re.compile(r"\n\s*\n")

MOST_WORDS_OF_AN_ITEM = 6
LONGEST_LOOP_SHARE = 0.5  # of a reply's n-grams that came before in it
WORD_RUN, CHARACTER_RUN = 4, 10
SHORTEST_LOOP_WORDS, SHORTEST_LOOP_CHARACTERS = 8, 40


def tidy(reply: str) -> str:
    """A reply as it is judged: Unicode in its plainest form (NFKC), so a wide comma is a comma; no space around it."""
    return unicodedata.normalize("NFKC", reply).strip()


def normal(text: str) -> str:
    """What lm-eval's `exact_match` compares with its options `ignore_case` and `ignore_punctuation`: words only."""
    return " ".join(re.findall(r"\w+", tidy(text).casefold()))


def words_of(text: str) -> list[str]:
    """The words of a text; a number with its decimals and a hyphenated word are one."""
    return WORD.findall(text)


def is_degenerate(reply: str) -> bool:
    """Whether a reply is empty, or mostly one word or one passage again and again.

    Counted is how much of it came before, as rep-n of Welleck et al. 2019 (arXiv:1908.04319) does: of runs of four
    words, and of ten characters for what has no spaces.
    """
    words = [word.casefold() for word in words_of(reply)]
    if not words:
        return True
    if len(words) >= 5 and Counter(words).most_common(1)[0][1] > len(words) / 2:
        return True
    if len(words) >= SHORTEST_LOOP_WORDS and _repeated(words, WORD_RUN) > LONGEST_LOOP_SHARE:
        return True
    return len(reply) >= SHORTEST_LOOP_CHARACTERS and _repeated(reply, CHARACTER_RUN) > LONGEST_LOOP_SHARE


def is_echo(reply: str, instruction: str) -> bool:
    """Whether more than half of a reply's runs of four words are the instruction's own."""
    said, asked = (_runs(normal(text).split(), WORD_RUN) for text in (reply, instruction))
    return bool(said) and sum(run in set(asked) for run in said) > len(said) / 2


def _repeated(sequence: Sequence[str], length: int) -> float:
    runs = _runs(sequence, length)
    return 1 - len(set(runs)) / len(runs)


def _runs(sequence: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(sequence[i : i + length]) for i in range(len(sequence) - length + 1)]


# How many


def words(reply: str, n: int) -> bool:
    """Exactly `n` words."""
    return len(words_of(reply)) == n


def words_at_least(reply: str, n: int) -> bool:
    """`n` words or more."""
    return len(words_of(reply)) >= n


def words_at_most(reply: str, n: int) -> bool:
    """At least one word and at most `n`."""
    return 1 <= len(words_of(reply)) <= n


def sentences(reply: str, n: int) -> bool:
    """Exactly `n` sentences; words after the last full stop are one more."""
    return len(_sentences(reply)) == n


def sentences_at_most(reply: str, n: int) -> bool:
    """At least one sentence and at most `n`."""
    return 1 <= len(_sentences(reply)) <= n


def lines(reply: str, n: int) -> bool:
    """Exactly `n` lines that are not blank."""
    return len(_lines(reply)) == n


def paragraphs(reply: str, n: int) -> bool:
    """Exactly `n` parts with a blank line between them."""
    return len([part for part in BLANK_LINE.split(reply) if part.strip()]) == n


def question_marks(reply: str, n: int) -> bool:
    """Exactly `n` question marks."""
    return reply.count("?") == n


def mentions(reply: str, word_and_count: tuple[str, int]) -> bool:
    """A word, given as `[word, n]`, at least `n` times, in any case and with any particle."""
    word, n = word_and_count
    return reply.casefold().count(str(word).casefold()) >= n


# Lists


def items(reply: str, n: int) -> bool:
    """`n` things, however they are listed: a line each, with or without a number, or one after the other in a sentence.

    In a sentence a thing is what stands between commas and conjunctions. A sentence before a list, with its colon or
    on a line of its own, is no thing.
    """
    shown = _lines(reply)
    marked = [line for line in shown if NUMBERED.match(line) or BULLET.match(line)]
    if marked:
        return len(marked) == n
    after = [line for line in shown if not line.rstrip("*").endswith(":")]
    if len(after) > 1:
        return len(after) == n
    return len(_in_a_row(after[0] if after else "")) == n


def comma_list(reply: str, n: int) -> bool:
    """One line of `n` short parts with commas between them, and nothing else."""
    parts = [part.strip(" .。") for part in re.split(r"[,、]", reply)]
    short = all(1 <= len(words_of(part)) <= MOST_WORDS_OF_AN_ITEM for part in parts)
    return len(parts) == n and "\n" not in reply and short


def numbered_list(reply: str, n: int) -> bool:
    """`n` lines that begin with 1. to `n`. (or with a bracket), in order; other lines may stand around them."""
    found = [int(match[1]) for line in _lines(reply) if (match := NUMBERED.match(line))]
    return found == list(range(1, n + 1))


def bullets(reply: str, n: int) -> bool:
    """`n` lines that begin with a dash, a star or a point."""
    return len([line for line in _lines(reply) if BULLET.match(line)]) == n


def table(reply: str, columns: int) -> bool:
    """A Markdown table with so many columns: a head, a line under it and at least one row."""
    rows = [line.strip() for line in _lines(reply) if line.strip().startswith("|") and line.strip().endswith("|")]
    cells = [row.strip("|").split("|") for row in rows]
    ruled = len(rows) >= 3 and set(rows[1]) <= set("|-: ") and "-" in rows[1]
    return ruled and all(len(row) == columns for row in cells)


def json_object(reply: str, keys: Sequence[str]) -> bool:
    """A JSON object with these keys and no others, alone or in a code block."""
    value = _json(reply)
    return isinstance(value, dict) and set(cast("dict[str, object]", value)) == set(keys)


def json_array(reply: str, n: int) -> bool:
    """A JSON array of `n` values, alone or in a code block."""
    value = _json(reply)
    return isinstance(value, list) and len(cast("list[object]", value)) == n


# Beginning and end


def starts_with(reply: str, text: str) -> bool:
    """The very text first, in any case, and more after it."""
    return reply.casefold().startswith(text.casefold()) and len(reply) > len(text)


def ends_with(reply: str, text: str) -> bool:
    """The very text last, in any case, and more before it."""
    return reply.casefold().endswith(text.casefold()) and len(reply) > len(text)


def first_word(reply: str, options: Sequence[str]) -> bool:
    """One of the options is the first word, and there are at least three words after it."""
    found = words_of(reply)
    return len(found) >= 4 and found[0].casefold() in {option.casefold() for option in options}


def one_of(reply: str, options: Sequence[str]) -> bool:
    """One of the options and nothing else, but for case and punctuation."""
    return normal(reply) in {normal(option) for option in options}


def title(reply: str, brackets: str) -> bool:
    """The first line is in these brackets (two or four characters), and there is more under it."""
    half = len(brackets) // 2
    opening, closing = brackets[:half], brackets[half:]
    first, *rest = [line.strip() for line in _lines(reply)]
    inside = first.removeprefix(opening).removesuffix(closing)
    return bool(rest) and first == f"{opening}{inside}{closing}" and bool(inside.strip())


def in_quotes(reply: str, wanted: bool = True) -> bool:
    """The whole reply between double quotation marks."""
    return (len(reply) > 2 and reply[0] in '"“' and reply[-1] in '"”') is wanted


def separated_by(reply: str, text: str) -> bool:
    """Two parts that are not alike, with the very text once between them."""
    parts = [part.strip() for part in reply.split(text)]
    return len(parts) == 2 and all(parts) and normal(parts[0]) != normal(parts[1])


# What it is made of


def contains(reply: str, texts: Iterable[str]) -> bool:
    """All of the texts, in any case."""
    return all(text.casefold() in reply.casefold() for text in texts)


def without(reply: str, texts: Iterable[str]) -> bool:
    """None of the words; in Korean none of the texts, since a particle joins the word."""
    found = {word.casefold() for word in words_of(reply)}
    return not any(text.casefold() in (found if text.isascii() else reply.casefold()) for text in texts)


def without_characters(reply: str, characters: str) -> bool:
    """None of the characters, in either case."""
    return not set(characters.casefold()) & set(reply.casefold())


def upper_case(reply: str, wanted: bool = True) -> bool:
    """Every letter that has a case is a capital one."""
    return reply.isupper() is wanted


def lower_case(reply: str, wanted: bool = True) -> bool:
    """No letter is a capital one."""
    return reply.islower() is wanted


def digits(reply: str, wanted: bool) -> bool:
    """Whether a digit is in it."""
    return any(character.isdigit() for character in reply) is wanted


def placeholders(reply: str, n: int) -> bool:
    """At least `n` parts in square brackets, such as [name]."""
    return len(re.findall(r"\[[^\[\]\n]+\]", reply)) >= n


def language(reply: str, code: str) -> bool:
    """Most letters are of the language's script: nine in ten Latin for `en`, more than half Hangul for `ko`."""
    letters = [letter for letter in reply if letter.isalpha()]
    if code == "ko":
        return sum("가" <= letter <= "힣" for letter in letters) > len(letters) / 2
    return sum(letter.isascii() for letter in letters) >= max(1, 0.9 * len(letters))


def _sentences(text: str) -> list[str]:
    unmarked = "\n".join(NUMBERED.sub("", line) for line in text.splitlines())
    parts = SENTENCE_END.split(ABBREVIATION.sub(lambda match: match[0][:-1], unmarked))
    return [part for part in parts if words_of(part)]


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _in_a_row(sentence: str) -> list[str]:
    """What stands between the commas and conjunctions of a sentence, after its colon where it has one."""
    listed = re.split(r":\s", sentence, maxsplit=1)[-1]
    return [part for part in BETWEEN_ITEMS.split(listed) if words_of(part)]


def _json(reply: str) -> object:
    fenced = FENCE.fullmatch(reply)
    try:
        return json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        return None


RULES: dict[str, Callable[..., bool]] = {
    rule.__name__: rule
    for rule in (
        *(words, words_at_least, words_at_most, sentences, sentences_at_most, lines, paragraphs),
        *(question_marks, mentions, items, comma_list, numbered_list, bullets, table, json_object, json_array),
        *(starts_with, ends_with, first_word, one_of, title, in_quotes, separated_by, contains, without),
        *(without_characters, upper_case, lower_case, digits, placeholders, language),
    )
}
"""By the names that the list of instructions has for them."""
