"""Whatever a template or a regular expression of a user does, it comes to an end, and soon."""

import contextlib
import re
import threading
import time

import pytest
from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError

from sllm_tune.bounded import TookTooLong, TooLarge, compiled, within
from sllm_tune.errors import BadInput
from sllm_tune.runs.machine import peak_memory_bytes, reset_peak_memory
from sllm_tune.sandbox import sandbox

ROUNDS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
NAMESPACE = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
ENDLESS = {
    "loops in loops": ROUNDS + "{% endfor %}" * 3,
    "loops in loops of text": ROUNDS + "x" + "{% endfor %}" * 3,
    "text in a macro": "{% macro m() %}" + ROUNDS + "x" * 9999 + "{% endfor %}" * 3 + "{% endmacro %}{{ m() }}",
    "text in a set": "{% set t %}" + ROUNDS + "x" * 9999 + "{% endfor %}" * 3 + "{% endset %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice": "{% macro m(n) %}{{ m(n-1) ~ m(n-1) if n }}{% endmacro %}{{ m(99) }}",
    "a block that shows itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a recursive loop over much": "{% for x in [1] recursive %}{{ loop(range(99999)) if loop.depth < 4 }}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "times of a list": "{{ 10**5 * [1] * 10**5 }}",
    "powers": "{% set x = 99999 %}{{ x ** x ** x }}",
    "squares": NAMESPACE.replace("START", "3").replace("STEP", "ns.x * ns.x"),
    "texts that double": NAMESPACE.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x"),
    "sums that double": NAMESPACE.replace("START", "'ab'").replace("STEP", "ns.x + ns.x"),
    "lists that double": NAMESPACE.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]"),
    "dictionaries that double": NAMESPACE.replace("START", "1").replace("STEP", "dict(a=ns.x, b=ns.x)"),
    "literals that double": NAMESPACE.replace("START", "1").replace("STEP", "{'a': ns.x, 'b': (ns.x, 1)}"),
    "namespaces that double": NAMESPACE.replace("START", "1").replace("STEP", "namespace(a=ns.x, b=ns.x)"),
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width from outside": "{{ '%*d' % (1000000000, 1) }}",
    "a width in format": "{{ '{:1000000000d}'.format(1) }}",
    "a width from outside in format": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "a width in format_map": "{{ '{a:1000000000d}'.format_map({'a': 1}) }}",
    "a width in the filter": "{{ '%1000000000d'|format(1) }}",
    "names asked for often": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "center": "{{ 'a'.center(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "the filter center": "{{ 'a'|center(10000000000) }}",
    "the filter center by name": "{{ 'a'|center(width=10**10) }}",
    "center in map": "{{ range(99999)|map('center', 99999)|list }}",
    "replace": "{% set x = 'a' * 99999 %}{{ x|replace('a', x) }}",
    "replace of nothing": "{% set x = 'a' * 99999 %}{{ x.replace('', x) }}",
    "join": "{{ range(99999)|join('a' * 99999) }}",
    "the method join": "{{ ('a' * 99999).join('b' * 99999) }}",
    "indent": "{{ ('a\n' * 9999)|indent(99999) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(99999) }}",
    "translate": "{{ ('a' * 9999).translate({97: 'b' * 9999}) }}",
    "batch": "{{ [1]|batch(10**9, 1)|list }}",
    "slice": "{{ [1]|slice(slices=10**9)|list }}",
    "wordwrap": "{{ ('a' * 99999)|wordwrap(1, wrapstring='x' * 99999) }}",
    "tojson": "{{ range(9999)|list|tojson(indent=99999) }}",
    "round": "{{ 2.5|round(10**9, 'ceil') }}",
    "to_bytes": "{{ (1).to_bytes(10**10) }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a long template": "{{ 1 }}" * 999_999,
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_an_end_is_stopped_in_two_seconds_and_100_mb(template: str) -> None:
    reset_peak_memory()
    before, start = peak_memory_bytes(), time.process_time()
    with pytest.raises(TooLarge):
        sandbox().from_string(template).render()
    assert time.process_time() - start < 2
    assert peak_memory_bytes() < before + 100e6


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "{{ a }} {{ b|upper }}{% for x in xs %}{{ loop.index }}{{ x }}{{ ',' if not loop.last }}{% endfor %}\n",
            "1 B1x,2y\n",
        ),
        ("{{ xs|length }}{{ xs[1:]|join('-') }}{{ [a, b] }}{{ (a, b) }}{{ {'k': b} }}", "2y[1, 'b'](1, 'b'){'k': 'b'}"),
        ("{% for k, v in d.items() %}{{ k ~ '=' ~ v }}{% endfor %}{% set p, q = b, a %}{{ p }}{{ q }}", "m=2b1"),
        ("{{ '%05.1f|%s' % (2.5, b) }}{{ '{:>3}'.format(b) }}{{ 'a-b'.replace('-', '') }}", "002.5|b  bab"),
        ("{% macro m(x) %}<{{ x }}>{{ caller() }}{% endmacro %}{% call m(a) %}in{% endcall %}", "<1>in"),
        ("{% for x in [[1], [2]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
        (
            "{{ xs|map('upper')|list }}{{ range(3)|sum }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ none is none }}",
            "['X', 'Y']310243True",
        ),
        ("{% for x in [] %}{% else %}none{% endfor %}{{ missing is defined }}{{ 2.5|round(1) }}", "noneFalse2.5"),
    ],
)
def test_a_usual_template_gives_what_jinja_gives(template: str, text: str) -> None:
    values = {"a": 1, "b": "b", "xs": ["x", "y"], "d": {"m": 2}}
    assert sandbox(undefined=StrictUndefined).from_string(template).render(values) == text


def test_a_row_may_be_long_and_rendered_again_and_again() -> None:
    template = sandbox().from_string("{{ question }}\n{% for c in choices %}{{ c }}{% endfor %}")
    for _ in range(100):
        assert len(template.render(question="x" * 500_000, choices=["y" * 1000] * 100)) == 600_001


@pytest.mark.parametrize("template", ["{{ ''.__class__ }}", "{{ xs.append(1) }}", "{{ '{0.__class__}'.format(1) }}"])
def test_templates_reach_no_internals_and_change_no_row(template: str) -> None:
    with pytest.raises(SecurityError):
        str(sandbox(undefined=StrictUndefined).from_string(template).render(xs=[]))


def spin() -> None:
    while True:
        pass


def test_a_block_that_is_too_slow_is_stopped_and_said() -> None:
    start = time.process_time()
    with pytest.raises(TookTooLong, match=r"the rows of t took longer than 0\.2 s"), within(0.2, "the rows of t"):
        spin()
    assert time.process_time() - start < 2


def test_within_stops_a_thread_that_is_not_the_main_one() -> None:
    said: list[str] = []

    def work() -> None:
        try:
            with within(0.1, "it"):
                spin()
        except TookTooLong as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert said == ["it took longer than 0.1 s and was stopped."]


def test_nothing_is_raised_after_a_block_that_ended_about_in_time() -> None:
    late = 0
    for number in range(300):
        try:
            with within(0.002, "it"):
                end = time.monotonic() + 0.0015 + number % 10 * 1e-4
                while time.monotonic() < end:
                    pass
        except TookTooLong:
            late += 1
        for _ in range(2000):  # where an exception on its way would arrive
            pass
    assert late < 300


def test_the_outer_of_two_blocks_is_the_one_that_is_said() -> None:
    with pytest.raises(TookTooLong, match="outer"), within(0.1, "outer"), within(60, "inner"):
        spin()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*a){20}$", r"(\w+\s?)+!"])
def test_a_regular_expression_without_an_end_is_stopped_and_named(pattern: str) -> None:
    start = time.process_time()
    with contextlib.suppress(TookTooLong):  # regex sees at once that some of them cannot match
        compiled(pattern, "t.yaml: skip").fullmatch("a" * 50_000 + "-")
    assert time.process_time() - start < 2


def test_a_regular_expression_that_was_stopped_is_named() -> None:
    with pytest.raises(TookTooLong, match=r"t.yaml: skip: \(\.\*a\)\{20\}"):
        compiled("(.*a){20}b", "t.yaml: skip").search("a" * 50_000 + "-")


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "(?P<a>", "a{2", "*", "a" * 5000, "((a{999}){999}){999}", 5, None, b"a"]
)
def test_what_is_no_usable_regular_expression_is_refused_with_its_place(pattern: object) -> None:
    if pattern == "a{2":  # text in Python's syntax
        assert compiled(pattern, "x").search("a{2")
        return
    with pytest.raises(BadInput, match=r"task\.yaml: skip"):
        compiled(pattern, "task.yaml: skip")


def test_a_usual_regular_expression_finds_what_re_finds() -> None:
    text = "The answer is (B).\nSo: B, 12.5 \ud55c\uad6d"
    for pattern in [
        r"\((\w)\)",
        r"(?i)ANSWER is",
        r"(\d+)(?:\.(\d+))?",
        r"[^\W\d_]+",
        r"^So: (?P<x>.)",
        r"(?m)^So",
        r"[가-힣]+",
    ]:
        ours, theirs = compiled(pattern, "x"), re.compile(pattern)
        assert ours.findall(text) == theirs.findall(text)
        assert bool(ours.fullmatch(text)) == bool(theirs.fullmatch(text))
        assert ours.sub("<>", text) == theirs.sub("<>", text)


def test_a_template_cannot_hang_in_the_filter_regex_replace_of_lm_eval() -> None:
    env = sandbox(filters={"regex_replace": re.sub})
    assert env.from_string("{{ 'a1'|regex_replace('[0-9]', 'x') }}").render() == "ax"
    with pytest.raises(TookTooLong):
        env.from_string("{{ ('a' * 5000 ~ '!')|regex_replace('(.*a){20}b', 'x') }}").render()
    with pytest.raises(TooLarge):
        env.from_string("{{ ('a' * 9999)|regex_replace('', 'x' * 9999) }}").render()
