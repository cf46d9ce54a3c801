"""Words and figures of what is shown of a run: the report in both forms, and the model card.

Every sentence is in `templates/strings.yaml`; numbers, intervals and names are written here, so that page, Markdown and
card cannot show different figures.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sllm_tune.evaluate.plain import EverydayDict, FigureDict, GainDict, ModelDict, ResultsDict, TaskDict
from sllm_tune.report.sentences import Sentences

SIGNIFICANCE = 0.05  # of evaluate.statistics, whose verdict this puts into words
# Differences of these are shares of items and may be told in points; a ROUGE or a perplexity may not.
SHARES_OF_ITEMS = {"acc", "acc_norm", "acc_mutual_info", "exact_match"}
COST_PATTERNS = {
    "latency_ms": "{:,.1f} ms",
    "tokens_per_second": "{:,.0f}",
    "usd_per_million_tokens": "${:,.4f}",
    "energy_wh": "{:,.2f} Wh",
}


Names = Literal["controls", "models", "domains", "metrics", "tests", "splits", "stages"]


class Words:
    """The report's language and number formats; null and non-finite figures become "not measured"."""

    def __init__(self, text: Sentences, models: Mapping[str, ModelDict]) -> None:
        self.text = text
        self._models = models

    def number(self, value: float | None, pattern: str = "{:.3f}") -> str:
        """A figure in the pattern, with a minus sign that is one."""
        if value is None or not math.isfinite(value):
            return self.text["not_measured"]
        shown = pattern.format(value)
        if not re.search(r"[1-9]", shown):  # no "-0.000"
            shown = shown.replace("-", "").replace("+", "")
        return shown.replace("-", "\N{MINUS SIGN}")

    def signed(self, value: float | None) -> str:
        """A difference, with its sign."""
        return self.number(value, "{:+.3f}")

    def interval(self, ci95: list[float] | None, pattern: str = "{:.3f}") -> str:
        """Two bounds as "low to high", in the report's language."""
        if ci95 is None or not all(map(math.isfinite, ci95)):
            return self.text["not_measured"]
        low, high = (self.number(bound, pattern) for bound in ci95)
        return self.text["between"].format(low=low, high=high)

    def p(self, p_value: float | None) -> str:
        """A p-value as "p < 0.001" or "p = 0.042"."""
        if p_value is None or not math.isfinite(p_value):
            return self.text["not_measured"]
        return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"

    def cost(self, key: str, value: float | str | None) -> str:
        """One figure of `models.<name>`: parameters in M or B, bytes in MB or GB (decimal), the others as they are."""
        if isinstance(value, str):
            return value
        if key in COST_PATTERNS or value is None:
            return self.number(value, COST_PATTERNS.get(key, ""))
        if key == "perplexity":  # of a model that was cut too far it has hundreds of digits
            return self.number(value, "{:,.2f}" if value < 1e6 else "{:.1e}")
        if key == "parameters":
            return self.number(value / 1e9, "{:.2f} B") if value >= 1e9 else self.number(value / 1e6, "{:.1f} M")
        if key in ("bytes", "peak_memory_bytes"):
            return self.number(value / 1e9, "{:.2f} GB") if value >= 1e9 else self.number(value / 1e6, "{:.1f} MB")
        return str(value)

    def plain(self, value: object) -> str:
        """Counts, names, lists of names, and counts by label."""
        if isinstance(value, dict):
            return ", ".join(f"{key} {self.plain(count)}" for key, count in value.items())
        if isinstance(value, list):
            return ", ".join(map(str, value))
        if isinstance(value, float):
            return self.number(value, "{:,.6g}")
        return "\N{EN DASH}" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    def kinds(self, counts: dict[str, int]) -> str:
        """Counts by kind, or that there are none."""
        return self.plain({key.replace("_", " "): count for key, count in counts.items()}) or self.text["pii_none"]

    def moment(self, made_at: str) -> str:
        """A time of `results.json` to the minute."""
        return made_at[:16].replace("T", " ") + " UTC"

    def share(self, figure: FigureDict) -> str:
        """A share of items."""
        return self.number(figure["value"] * 100, self.text["share"])

    def points(self, figure: FigureDict) -> str:
        """A difference of shares, in points with its sign."""
        return self.number(figure["value"] * 100, "{:+.1f}")

    def points_interval(self, figure: FigureDict) -> str:
        """And its interval."""
        return self.interval([bound * 100 for bound in figure["ci95"]], "{:+.1f}")

    def ability(self, results: ResultsDict) -> str:
        """What became of general ability, the worst first; that nothing changed only where nothing is shown to."""
        met, lost, text = results.get("everyday"), results.get("forgetting"), self.text
        said = self._everyday(met) if met else []
        if lost and lost["ci95"][0] > 0:
            said.append(text["forgetting_lost"])
        elif lost and lost["ci95"][1] < 0:
            said.append(text["forgetting_won"])
        elif lost:
            said.append(text["forgetting_even_choices" if said else "forgetting_even"])
        return " ".join(said)

    def _everyday(self, met: EverydayDict) -> list[str]:
        text, change = self.text, met["difference"]
        said: list[str] = []
        if has_collapsed(met):
            said.append(text["everyday_collapse"].format(share=self.share(met["labels"]["shares"]["specialised"])))
        if is_shown(change):
            key = "everyday_lost" if change["value"] < 0 else "everyday_won"
            ours, base = (self.share(met["followed"][name]) for name in ("specialised", "base"))
            said.append(text[key].format(ours=ours, base=base))
        worse = {language: prose["ratio"] for language, prose in met["prose"].items() if prose["ratio"]["ci95"][0] > 1}
        ratios = [
            text["prose_ratio"].format(
                language=text["languages"][language], ratio=self.number(ratio["value"], "{:.2f}")
            )
            for language, ratio in worse.items()
        ]
        return [*said, text["prose_lost"].format(ratios=", ".join(ratios))] if ratios else said

    def minutes(self, seconds: float | None) -> str:
        """Seconds as minutes."""
        return self.number(seconds and seconds / 60, self.text["minutes"])

    def word(self, group: Names, key: str) -> str:
        """A name that we know, in the report's language; any other name as it is."""
        if key not in self.text[group]:
            return key
        model = self._models.get(key)
        n = (model.get("num_fewshot") if model else None) or 0
        shots = self.text["shots"]["one" if n == 1 else "many"].format(n=n)
        return self.text[group][key].format(shots=shots)

    def amount(self, figure: FigureDict, metrics: set[str], sign: str = "") -> str:
        """A difference with its interval: in points where it is a share of items, else in the metric's own unit."""
        points = metrics <= SHARES_OF_ITEMS
        scale, pattern = (100, f"{{:{sign}.1f}}") if points else (1, f"{{:{sign}.3f}}")
        value = self.number(figure["value"] * scale, pattern)
        interval = self.interval([bound * scale for bound in figure["ci95"]], pattern)
        metric = ", ".join(self.word("metrics", name) for name in sorted(metrics))
        return self.text["points" if points else "raw"].format(value=value, interval=interval, metric=metric)


def is_shown(difference: GainDict) -> bool:
    """Whether a paired difference counts as shown, as `evaluate.statistics` has it."""
    low, high = difference["ci95"]
    return not low <= 0 <= high and difference["p_value"] < SIGNIFICANCE


def has_collapsed(met: EverydayDict) -> bool:
    """Whether more replies to everyday instructions are a label of the domain than those of the base."""
    difference = met["labels"]["difference"]
    return difference["value"] > 0 and is_shown(difference)


def verdict_sentence(results: ResultsDict, words: Words) -> str:
    """The opening sentence, with the controls that the specialist is not shown to beat, or that it is a smoke run.

    A collapse to the domain's labels is said before anything else.
    """
    if results.get("smoke"):
        return words.text["smoke"]
    met = results.get("everyday")
    if met and has_collapsed(met):
        share = words.share(met["labels"]["shares"]["specialised"])
        return words.text["everyday_headline"].format(share=share) + _comparison(results, words)
    return _comparison(results, words)


def _comparison(results: ResultsDict, words: Words) -> str:
    verdict, text = results["verdict"], words.text["verdict"]
    domain = {name: task for name, task in results["tasks"].items() if task["kind"] == "domain"}
    metrics = {task["metric"] for task in domain.values()}
    outcome = verdict["outcome"]
    if outcome == "no difference shown":
        amount = words.amount(verdict["gain"], metrics, sign="+")
    else:  # "worse by 6.0", not "worse by -6.0"
        amount = words.amount(_away_from_zero(verdict["gain"]), metrics)
    clauses = [_control_clause(control, domain, words) for control in verdict["controls_as_good"]]
    if not clauses:
        said = text[outcome]["alone"].format(amount=amount)
    else:
        controls = text["join"].join([clause["mid"] for clause in clauses[:-1]] + [clauses[-1]["last"]])
        said = text[outcome]["linked"].format(amount=amount, controls=controls)
    return said + _not_compared(verdict["not_compared"], domain, words)


def _not_compared(lacking: dict[str, list[str]], domain: Mapping[str, TaskDict], words: Words) -> str:
    """The sentence on the controls that were not measured, or not on every task; empty where all were."""
    if not lacking:
        return ""
    parts: list[str] = []
    for control, tasks in lacking.items():
        on = "" if len(tasks) == len(domain) else words.text["on_tasks"].format(tasks=", ".join(tasks))
        name = "any_fewshot" if control == "base_fewshot" else control  # with a number of examples that nobody chose
        parts.append(f"{words.word('controls', name)}{on}")
    return words.text["verdict"]["not_compared"].format(controls="; ".join(parts))


def _control_clause(control: str, domain: Mapping[str, TaskDict], words: Words) -> dict[str, str]:
    """What to say of a control: as good, as good with the higher score, or shown to be ahead; on its best task."""
    text = words.text["verdict"]
    pairs = {name: task["differences"].get(f"specialised vs {control}") for name, task in domain.items()}
    unbeaten = {name: pair for name, pair in pairs.items() if pair and pair["ci95"][0] <= 0}
    found = {"control": words.word("controls", control), "on": "", "amount": ""}
    if not unbeaten:
        return {form: clause.format(**found) for form, clause in text["as_good"].items()}
    task, best = min(unbeaten.items(), key=lambda item: item[1]["value"])
    shown = best["ci95"][1] < 0 and best["p_value"] < SIGNIFICANCE
    kind = "ahead" if shown else "as_good_and_higher" if best["value"] < 0 else "as_good"
    if len(domain) > 1:
        found["on"] = words.text["on_tasks"].format(tasks=task)
    found["amount"] = words.amount(_away_from_zero(best), {domain[task]["metric"]})
    return {form: clause.format(**found) for form, clause in text[kind].items()}


def _away_from_zero(figure: FigureDict) -> FigureDict:
    """The same difference seen from the side that is ahead."""
    if figure["value"] >= 0:
        return figure
    low, high = figure["ci95"]
    return {"value": -figure["value"], "ci95": [-high, -low]}


@cache
def environment(finalize: Callable[[object], object] | None = None, package: str = "sllm_tune.report") -> Environment:
    """Both escape: HTML by Jinja's autoescape, Markdown by `finalize`, whose Markup then passes.

    Args:
        finalize: What every value goes through that a template prints.
        package: Whose `templates/` are read; those of the report can be imported by all.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("sllm_tune.report")]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
        finalize=finalize,
    )


def markdown_text(value: object) -> Markup:
    """Every value printed into Markdown: no HTML, no markup, one line, no cell border; "p < 0.001" stays readable."""
    if isinstance(value, Markup):
        return value
    text = str(value).strip().replace("&", "&amp;").replace(">", "&gt;").replace("|", "&#124;")
    text = re.sub("<(?! )", "&lt;", text)  # only "<" and a space cannot open a tag
    text = re.sub(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)  # privacy_qa stays as it is
    text = re.sub(r"^(\d*)([-+=#.)])(?=[-+=#]*(?:\s|$))", r"\1\\\2", text)  # heading, list, rule
    return Markup(re.sub(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", "<br>", text))


def fence(text: str, language: str = "yaml") -> Markup:
    """A code block that its text cannot close."""
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{ticks}{language}\n{text}{ticks}")
