"""results.json -> report.html and report.md.

Python decides what is said, and in `plots.py` where a mark is drawn; the templates hold the markup and `strings.yaml`
every sentence. Both templates print through the same `_Words`, so that page and Markdown cannot show different figures.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sllm_tune.errors import RunFolderError
from sllm_tune.report.plots import interval_plots, loss_plot
from sllm_tune.report.resizing import resize_view
from sllm_tune.wording import visible

SCHEMA = 2
SIGNIFICANCE = 0.05  # of evaluate.statistics, whose verdict this puts into words
# Differences of these are shares of items and may be told in points; a ROUGE or a perplexity may not.
SHARES_OF_ITEMS = {"acc", "acc_norm", "acc_mutual_info", "exact_match"}
COST_PATTERNS = {
    "latency_ms": "{:,.1f} ms",
    "tokens_per_second": "{:,.0f}",
    "usd_per_million_tokens": "${:,.4f}",
    "energy_wh": "{:,.2f} Wh",
}


def write_report(results_path: Path, out_dir: Path) -> Path:
    """Write `report.html` and `report.md` into `out_dir`; each replaces an older one whole or not at all.

    Args:
        results_path: A run's `scores/results.json`.
        out_dir: Made if it is missing; the files are readable by their owner only.

    Returns:
        The path of `report.html`.

    Raises:
        RunFolderError: `results_path` cannot be read, is not JSON, or has another schema.
    """
    try:
        results = json.loads(results_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise RunFolderError(f"{results_path}: {reason}. Run `sllm-tune evaluate` again to make it.") from problem
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise RunFolderError(
            f"{results_path}: schema is {schema!r}, this version reads {SCHEMA}. Run `sllm-tune evaluate` again."
        )
    html, markdown = render(results)
    out_dir.mkdir(parents=True, exist_ok=True)
    _replace(out_dir / "report.md", markdown)
    _replace(out_dir / "report.html", html)
    return out_dir / "report.html"


def render(results: dict[str, Any]) -> tuple[str, str]:
    """Return the report as one HTML page without scripts or outside parts, and as Markdown.

    Texts in `results` may come from models and data; both forms show them as text, never as markup.

    Args:
        results: The content of `results.json`; figures that are null or not finite are shown as not measured.
    """
    results = _seen(results)
    show_items = results["recipe"].get("report", {}).get("show_items", True)
    strings = yaml.safe_load(resources.files("sllm_tune.report").joinpath("templates/strings.yaml").read_text("utf-8"))
    words = _Words(strings[results["language"]], results["models"])
    tasks = sorted(results["tasks"].items(), key=lambda task: task[1]["kind"] != "domain")
    view: dict[str, Any] = {
        "r": results,
        "t": words.text,
        "w": words,
        "verdict": _verdict(results, words),
        "tasks": tasks,
        "plots": interval_plots(tasks),
        "loss": loss_plot(results["training"]),
        "resized": resize_view(results.get("resize"), words.text),
        "show_items": show_items,
        "counted": ("rows", "groups", "tokens", *(("labels",) if show_items else ())),
        "recipe": yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True, width=100),
        "cost_models": [
            name for name, model in results["models"].items() if words.text["cost_rows"].keys() & model.keys()
        ],
    }
    html = _environment().get_template("report.html.j2").render(view)
    markdown = _environment(finalize=_markdown_text).get_template("report.md.j2").render(view, fence=_fence)
    return html, markdown


def _seen(value: Any) -> Any:
    """A value in which every text is visible as a whole."""
    if isinstance(value, dict):
        return {_seen(key): _seen(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_seen(inner) for inner in value]
    return visible(value) if isinstance(value, str) else value


class _Words:
    """The report's language and number formats; null and non-finite figures become "not measured"."""

    def __init__(self, text: dict[str, Any], models: dict[str, Any]) -> None:
        self.text = text
        self._models = models

    def number(self, value: float | None, pattern: str = "{:.3f}") -> str:
        if value is None or not math.isfinite(value):
            return self.text["not_measured"]
        shown = pattern.format(value)
        if not re.search(r"[1-9]", shown):  # no "-0.000"
            shown = shown.replace("-", "").replace("+", "")
        return shown.replace("-", "\N{MINUS SIGN}")

    def signed(self, value: float | None) -> str:
        return self.number(value, "{:+.3f}")

    def interval(self, ci95: list[float] | None, pattern: str = "{:.3f}") -> str:
        if ci95 is None or not all(map(math.isfinite, ci95)):
            return self.text["not_measured"]
        low, high = (self.number(bound, pattern) for bound in ci95)
        return self.text["between"].format(low=low, high=high)

    def p(self, p_value: float | None) -> str:
        if p_value is None or not math.isfinite(p_value):
            return self.text["not_measured"]
        return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"

    def cost(self, key: str, value: Any) -> str:
        """One figure of `models.<name>`: parameters in M or B, bytes in MB or GB (decimal), the others as they are."""
        if key in COST_PATTERNS or value is None:
            return self.number(value, COST_PATTERNS.get(key, ""))
        if key == "perplexity":  # of a model that was cut too far it has hundreds of digits
            return self.number(value, "{:,.2f}" if value < 1e6 else "{:.1e}")
        if key == "parameters":
            return self.number(value / 1e9, "{:.2f} B") if value >= 1e9 else self.number(value / 1e6, "{:.1f} M")
        if key in ("bytes", "peak_memory_bytes"):
            return self.number(value / 1e9, "{:.2f} GB") if value >= 1e9 else self.number(value / 1e6, "{:.1f} MB")
        return str(value)

    def plain(self, value: Any) -> str:
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
        return made_at[:16].replace("T", " ") + " UTC"

    def minutes(self, seconds: float | None) -> str:
        return self.number(seconds and seconds / 60, self.text["minutes"])

    def word(self, group: str, key: str) -> str:
        """A name that we know, in the report's language; any other name as it is."""
        if key not in self.text[group]:
            return key
        return self.text[group][key].format(n=self._models.get(key, {}).get("num_fewshot", ""))

    def amount(self, figure: dict[str, Any], metrics: set[str], sign: str = "") -> str:
        """A difference with its interval: in points where it is a share of items, else in the metric's own unit."""
        points = metrics <= SHARES_OF_ITEMS
        scale, pattern = (100, f"{{:{sign}.1f}}") if points else (1, f"{{:{sign}.3f}}")
        value = self.number(figure["value"] * scale, pattern)
        interval = self.interval([bound * scale for bound in figure["ci95"]], pattern)
        metric = ", ".join(self.word("metrics", name) for name in sorted(metrics))
        return self.text["points" if points else "raw"].format(value=value, interval=interval, metric=metric)


def _verdict(results: dict[str, Any], words: _Words) -> str:
    """The opening sentence, with the controls that the specialist is not shown to beat, or that it is a smoke run."""
    if results.get("smoke"):
        return words.text["smoke"]
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


def _not_compared(lacking: dict[str, list[str]], domain: dict[str, Any], words: _Words) -> str:
    """The sentence on the controls that were not measured, or not on every task; empty where all were."""
    if not lacking:
        return ""
    parts: list[str] = []
    for control, tasks in lacking.items():
        on = "" if len(tasks) == len(domain) else words.text["on_tasks"].format(tasks=", ".join(tasks))
        name = "any_fewshot" if control == "base_fewshot" else control  # with a number of examples that nobody chose
        parts.append(f"{words.word('controls', name)}{on}")
    return words.text["verdict"]["not_compared"].format(controls="; ".join(parts))


def _control_clause(control: str, domain: dict[str, Any], words: _Words) -> dict[str, str]:
    """What to say of a control: as good, as good with the higher score, or shown to be ahead; on its best task."""
    text = words.text["verdict"]
    pairs = {name: task["differences"].get(f"specialised vs {control}") for name, task in domain.items()}
    unbeaten = {name: pair for name, pair in pairs.items() if pair and pair["ci95"][0] <= 0}
    found: dict[str, Any] = {"control": words.word("controls", control), "on": "", "amount": ""}
    if not unbeaten:
        return {form: clause.format(**found) for form, clause in text["as_good"].items()}
    task, best = min(unbeaten.items(), key=lambda item: item[1]["value"])
    shown = best["ci95"][1] < 0 and best["p_value"] < SIGNIFICANCE
    kind = "ahead" if shown else "as_good_and_higher" if best["value"] < 0 else "as_good"
    if len(domain) > 1:
        found["on"] = words.text["on_tasks"].format(tasks=task)
    found["amount"] = words.amount(_away_from_zero(best), {domain[task]["metric"]})
    return {form: clause.format(**found) for form, clause in text[kind].items()}


def _away_from_zero(figure: dict[str, Any]) -> dict[str, Any]:
    """The same difference seen from the side that is ahead."""
    if figure["value"] >= 0:
        return figure
    low, high = figure["ci95"]
    return {"value": -figure["value"], "ci95": [-high, -low]}


@cache
def _environment(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """Both escape: HTML by Jinja's autoescape, Markdown by `finalize`, whose Markup then passes."""
    return Environment(
        loader=PackageLoader("sllm_tune.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
        finalize=finalize,
    )


def _markdown_text(value: Any) -> Markup:
    """Every value printed into Markdown: no HTML, no markup, one line, no cell border; "p < 0.001" stays readable."""
    if isinstance(value, Markup):
        return value
    text = str(value).strip().replace("&", "&amp;").replace(">", "&gt;").replace("|", "&#124;")
    text = re.sub("<(?! )", "&lt;", text)  # only "<" and a space cannot open a tag
    text = re.sub(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)  # privacy_qa stays as it is
    text = re.sub(r"^(\d*)([-+=#.)])(?=[-+=#]*(?:\s|$))", r"\1\\\2", text)  # heading, list, rule
    return Markup(re.sub(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", "<br>", text))


def _fence(text: str) -> Markup:
    """A code block that its text cannot close."""
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{ticks}yaml\n{text}{ticks}")


def _replace(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a reader or a crash never meets half a file."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
