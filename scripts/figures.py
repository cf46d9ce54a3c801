"""Every table of measured figures in a README, and the sentences that state some, from benchmarks/results/*.json.

    python scripts/figures.py                          # write them
    python scripts/figures.py --check                  # exit status 1 where a README says something else
    python scripts/figures.py --take RUN               # keep a finished run's results.json as its record first

A table stands between `<!-- figures NAME -->` and `<!-- end -->`; NAME is a key of TABLES below.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
READMES = [
    ROOT / "README.md",
    ROOT / "README.ko.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "recipes").glob("**/*.md")),
]
BLOCK = re.compile(r"(<!-- figures ([\w-]+) -->\n).*?(\n?<!-- end -->)", re.DOTALL)
MODELS = {
    "specialised": "**specialist**",
    "base": "base model",
    "base_fewshot": "base model, {num_fewshot} examples",
    "tfidf": "TF-IDF baseline",
    "majority": "majority answer",
}
SIZES = ("0 %", "25 %", "40 %", "60 %")
SIZED = {  # in the order of the table
    "gaap_statement": "us-gaap statements",
    "privacy_qa": "PrivacyQA",
    "banking77": "Banking77",
    "cuad_clause_type": "CUAD clause types",
    "icd_chapter": "ICD-10-CM chapters",
}
PUBLIC = {
    "headline_sentiment": "SEntFiN: news for the company that is named",
    "banking77": "Banking77: 77 intents",
    "overruling": "Overruling: does a sentence overrule a case?",
    "cuad_clause_type": "CUAD: 17 clause types",
    "tax_ruling_type": "Korean tax rulings: 6 tax types",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a README differs")
    parser.add_argument("--take", type=Path, metavar="RUN", help="a run folder whose figures are to be published")
    given = parser.parse_args()
    if given.take:
        print(take(given.take))
    stale = [path for path in READMES if filled(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not what benchmarks/results says' if given.check else 'written'}")
        if not given.check:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if given.check and stale else 0


def filled(text: str) -> str:
    """A README with its tables as the records give them."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n<!-- end -->", text)


def take(run: Path) -> Path:
    """Keep a run's results.json, but for single items: rows are the data set's, not ours to publish."""
    results = json.loads((run / "scores" / "results.json").read_text(encoding="utf-8"))
    for task in results["tasks"].values():
        task.pop("flips", None)
    text = json.dumps(results, ensure_ascii=False, indent=2) + "\n"
    if local := re.search(rf'"(/|~|{re.escape(str(Path.home()))})[^"]*"', text):
        sys.exit(f"{run}: its results name a place of this machine, {local[0]}; such a record is not published")
    if results["smoke"]:
        sys.exit(f"{run}: a smoke run, whose figures mean nothing")
    path = RESULTS / f"{results['name']}.json"
    path.write_text(text, encoding="utf-8")
    return path


def record(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def quickstart(name: str) -> Callable[[], str]:
    return lambda: quickstart_table(record(name), record("quickstart_budget")["minutes"].get(name))


def quickstart_table(results: dict[str, Any], minutes: float | None) -> str:
    """Every model on every task, and how far the specialist is ahead of it."""
    alone = "with nothing else on the machine"
    took = f" Training and evaluation take {minutes} minutes {alone}." if minutes else ""
    rows: list[list[str]] = []
    shots = results.get("models", {}).get("base_fewshot", {}).get("num_fewshot", 5)
    for task, entry in results["tasks"].items():
        items = f"{task}, {entry['n']} items" if "n" in entry else task
        for model, name in MODELS.items():
            if model in entry["scores"]:
                score = entry["scores"][model]
                ahead = entry["differences"].get(f"specialised vs {model}")
                difference = f"{ahead['value']:+.3f} ({interval(ahead)})" if ahead else ""
                p = f"{ahead['p_value']:.2g}" if ahead and "p_value" in ahead else ""
                cells = [items, name.format(num_fewshot=shots), f"{score['value']:.3f}", interval(score)]
                rows.append([*cells, difference, p])
    head = ["task", "model", "accuracy", "95 % interval", "specialist minus this", "p"]
    lost, agreement = results["forgetting"], results.get("merge_agreement")
    said = f"Forgetting {lost['value']:+.3f} ({interval(lost)})."
    if agreement:
        said += (
            f" Of {agreement['n']} validation answers, {agreement['flipped']} differ between adapter and merged model."
        )
    if met := results.get("everyday"):
        followed, labels = met["followed"], met["labels"]["shares"]["specialised"]["value"]
        said += (
            f" Of {met['n']} everyday instructions the specialist follows {followed['specialised']['value']:.0%}, the "
            f"base {followed['base']['value']:.0%}; {labels:.1%} of its replies are a label that nobody asked for."
        )
    return f"Made on {results['hardware']}.{took}\n\n{table(head, rows)}\n\n{textwrap.fill(said, 120)}"


def public_data() -> str:
    """Specialists beside a TF-IDF baseline, the farthest ahead first."""
    tasks = record("public_data")["tasks"]
    rows: list[list[str]] = []
    for name, shown in PUBLIC.items():
        found = tasks[name]
        scores = [f"{found['scores'][model]:.3f}" for model in ("specialised", "tfidf")]
        ahead = found["specialised_minus_tfidf"]
        seconds = f"{found['train_seconds']:,.0f} s"
        rows.append([shown, f"{found['n']:,}", *scores, f"{ahead['value']:+.3f} ({interval(ahead)})", seconds])
    return table(["task", "items", "specialist", "TF-IDF", "difference (95 %)", "training"], rows)


def mentions() -> str:
    """For finding and not choosing there is no TF-IDF baseline: a dictionary stands beside the specialist."""
    found = record("public_data")["tasks"]["ncbi_disease"]
    items, seconds = f"NCBI's disease mentions, {found['n']} sentences", f"{found['train_seconds']:,.0f} s"
    scores = [f"{found['scores'][name]:.3f}" for name in ("specialised_f1", "dictionary_f1")]
    return table(["task", "specialist, entity-level F1", "dictionary", "training"], [[items, *scores, seconds]])


def resize_accuracy() -> str:
    """Accuracy by size, naive ways to a size, general ability, and speed."""
    tasks = record("resize_accuracy")["tasks"]
    rows: list[list[str]] = []
    for task, shown in SIZED.items():
        models, items = tasks[task]["models"], f"{tasks[task]['models']['0 %']['n']:,}"
        tfidf = f"{models['0 %']['beside_it']['tfidf']:.3f}"
        rows.append([shown, items, tfidf, *[f"{models[size]['accuracy']:.3f}" for size in SIZES]])
        for way in ("random layers", "last layers"):
            naive = [models.get(f"{size} by {way}") for size in SIZES]
            if any(naive):
                name = "the last layers" if way == "last layers" else way
                cells = [f"{found['accuracy']:.3f}" if found else "" for found in naive]
                rows.append([f"the same, {name} left out", items, "", *cells])
    general = [tasks["gaap_statement"]["models"][size]["general"]["piqa"] for size in SIZES]
    rows.append(["general: PIQA, after us-gaap", "300", "", *[f"{value:.3f}" for value in general]])
    for task, shown in SIZED.items():
        speed = tasks[task]["items_per_second"]
        times = [f"{speed[size] / speed['0 %']:.2f}" for size in SIZES[1:]]
        rows.append([f"items a second, {shown}", "", "", "1", *times])
    head = ["task", "items", "a TF-IDF baseline", "whole", *[f"{size} fewer" for size in SIZES[1:]]]
    costs = naive_costs(tasks)
    said = "Layers left out at random or from the end, down to as few parameters, cost"
    return f"{table(head, rows)}\n\n{said} {min(costs):.2f} to {max(costs):.2f} more."


def naive_costs(tasks: dict[str, Any]) -> list[float]:
    """By how much accuracy each naive way to a size is behind ours."""
    models = [found["models"] for found in tasks.values()]
    naive = [(of, name, name.partition(" by ")[0]) for of in models for name in of if " by " in name]
    return [of[size]["accuracy"] - of[name]["accuracy"] for of, name, size in naive]


def downsize(task: str) -> Callable[[], str]:
    return lambda: downsize_table(record("resize_accuracy")["tasks"][task])


def downsize_table(found: dict[str, Any]) -> str:
    """One task's models by size, with what general ability pays."""
    rows: list[list[str]] = []
    if base := found.get("base_general"):
        rows.append(["the base, not specialised", "", "", "", f"{base['openbookqa']:.3f}", f"{base['piqa']:.3f}", ""])
    for name, model in found["models"].items():
        if " by " in name:
            continue
        size, comma, how = name.partition(", ")
        shown = "whole model" if name == "0 %" else f"{size} fewer{comma}{how}"
        millions = model["parameters"] / 1e6 if "parameters" in model else model.get("parameters_millions")
        lost, speed = found.get("differences", {}).get(name), found["items_per_second"].get(name)
        general = [model.get("general", {}).get(other) for other in ("openbookqa", "piqa")]
        accuracy = f"{model['accuracy']:.3f}" + (f" ({interval(model)})" if "ci95" in model else "")
        rows.append(
            [
                shown,
                f"{millions:.1f} million" if millions else "",
                accuracy,
                f"{lost['value']:+.3f} ({interval(lost)})" if lost else "",
                *[f"{value:.3f}" if value is not None else "" for value in general],
                f"{speed / found['items_per_second']['0 %']:.2f}" if speed else "",
            ]
        )
    head = [
        "",
        "parameters",
        f"accuracy on {found['models']['0 %']['n']} items (95 %)",
        "minus the whole model's (95 %)",
    ]
    return table([*head, "OpenBookQA", "PIQA", "times the items a second"], rows)


def one_step() -> str:
    """What a trimmed vocabulary leaves as it was, and what healing brings back."""
    trim, runs = record("resize_vocabulary"), record("resize_heal")["runs"]
    general, layers = trim["general"], record("resize_heal")["layers"]
    before, after = (score["value"] for score in trim["accuracy"])
    whole, cut, healed = runs["with a teacher"]["perplexity"]
    return paragraph(f"""
The vocabulary alone takes {trim["fewer"] * 100:.1f} % off for the us-gaap statements. Accuracy is
{after:.3f}, {before:.3f} before; of the {general["kept"]} in {general["items"]} general items whose words were all
kept,
{general["same_as_whole"]} have the same answer (`python -m benchmarks.resize_vocabulary`).
With {layers[0] - layers[1]} of {layers[0]} layers gone, the perplexity of
PrivacyQA's validation rows goes from {whole:.3g} to {cut:.3g}; after 100 steps of healing on the training rows it
is {healed:.3g}, and {runs["text alone"]["perplexity"][2]:.3g} without the teacher
(`python -m benchmarks.resize_heal`).""")


def leaked_by_one_key() -> str:
    found = record("one_key_leaks")
    rows, questions, clauses = found["rows"], found["distinct"]["question"], found["distinct"]["context"]
    return paragraph(f"""
The {rows:,} rows have {questions:,} questions and {clauses:,} clauses. Held out by question alone,
{found["leaked"]["question"] * 100:.0f} % of the test items would have their exact clause in training
(`python -m benchmarks.one_key_leaks`).""")


def lm_eval() -> str:
    found = record("lm_eval_agreement")["tasks"]["privacy_qa"]
    same = found["items"] - len(found["differing"])
    items = f"all {same:,} items" if same == found["items"] else f"{same:,} of {found['items']:,} items"
    return f"It gave the same answer on {items} of a run of the legal quickstart, both in bfloat16."


def interval(score: dict[str, Any]) -> str:
    """A 95 % interval in words; empty where none was published."""
    return f"{score['ci95'][0]:.3f} to {score['ci95'][1]:.3f}" if "ci95" in score else ""


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=120, break_long_words=False, break_on_hyphens=False)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("| --- ", "|---").replace("--- |", "---|") for cells in lines)


TABLES: dict[str, Callable[[], str]] = {
    **{f"{domain}-quickstart": quickstart(f"{domain}-quickstart") for domain in ("legal", "medical", "finance")},
    "public-data": public_data,
    "mentions": mentions,
    "one-key-leaks": leaked_by_one_key,
    "lm-eval": lm_eval,
    "one-step": one_step,
    "resize-accuracy": resize_accuracy,
    "legal-downsize": downsize("privacy_qa"),
    "medical-downsize": downsize("icd_chapter"),
    "finance-downsize": downsize("gaap_statement"),
}

if __name__ == "__main__":
    sys.exit(main())
