"""Why a run must not be published, as far as its own files say: each reason with what, where and how to fix it.

What a run folder says is held against its other files, so that an adapter, its scores and its data card are those of
one run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from pathlib import Path

from sllm_tune.deliver.licences import (
    Commercial,
    commercial_use,
    is_non_commercial,
    is_unknown,
    is_without_derivatives,
    trained_tasks,
)
from sllm_tune.errors import BadInput, ModelError, RunFolderError
from sllm_tune.evaluate.plain import ResultsDict, as_plain
from sllm_tune.evaluate.schema import Results
from sllm_tune.model.lineage import lineage_of
from sllm_tune.runs.folder import Run

ALLOWABLE = {
    "non_commercial": "data or a base whose licence forbids commercial use",
    "unknown_licence": "data whose licence is not stated",
    "personal_data": "personal data that was found in the training rows and left there",
    "smoke": "a smoke run, whose model is random",
    "base": "an adapter on a base on the hub whose bytes are not those it was trained on",
}
"""What a user may know better, by the name to allow it with."""


def read_results(run_dir: Path) -> ResultsDict:
    """The content of a finished run's `scores/results.json`.

    Raises:
        BadInput: there is none, or it is not what this version writes.
    """
    try:
        return as_plain(Results.read(run_dir / "scores" / "results.json", "evaluate"))
    except RunFolderError as error:  # here it is the input, not what a job made
        raise BadInput(str(error)) from error


def run_faults(run: Run) -> list[str]:
    """What is not as the run's stages left it, or is not of one and the same run."""
    stages = ["prepare", *(["resize"] if (run.dir / "resize").exists() else []), "train", "merge", "evaluate"]
    found: list[str] = []
    for stage in stages:
        if changed := run.intact(stage):
            found.append(f"{run.dir / stage}: {changed}.\n    Run the recipe again, which makes what is not as it was.")
    if found:
        return found
    for stage, later in itertools.pairwise(("train", "merge", "evaluate")):
        weights = {name: file for name, file in run.files(stage).items() if name.endswith(".safetensors")}
        manifest = run.manifest(later)
        used = manifest["inputs"] if manifest else {}
        if any(file["sha256"] != used.get(f"file.{name}") for name, file in weights.items()):
            found.append(f"{run.dir / 'scores'}: the scores are of another adapter.\n    Run sllm-tune evaluate again.")
            break
    return found


def lineage_faults(run: Run, results: ResultsDict) -> list[str]:
    """Whether adapter, training record and scores name the same base."""
    try:
        said = {"adapter/sllm_tune.json": lineage_of(run.dir / "adapter"), "scores/results.json": results["lineage"]}
        said["train/lineage.json"] = json.loads((run.dir / "train" / "lineage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, ModelError) as error:
        return [f"{run.dir}: what the adapter was trained on is not known ({error}).\n    Train again."]
    bases = {file: (found or {}).get("base_sha256") for file, found in said.items()}
    if None in bases.values() or len(set(bases.values())) > 1:
        listed = ", ".join(f"{file} {str(base)[:16]}" for file, base in bases.items())
        return [f"{run.dir / 'adapter'}: an adapter of another base ({listed}).\n    Train again on the base you mean."]
    return []


def figure_faults(results: ResultsDict, allow: Collection[str]) -> list[str]:
    """A gate that failed, and figures that mean nothing."""
    found: list[str] = []
    gate = results.get("gate")
    if gate and not gate["passed"]:
        reasons = "".join(f"\n    {reason}" for reason in gate["reasons"])
        found.append(
            f"scores/results.json: the gate failed.{reasons}\n    Make the specialist better, or move the gate."
        )
    if results.get("smoke") and "smoke" not in allow:
        found.append(f"scores/results.json: a smoke run; its model is random.\n    Run without --smoke.{_or('smoke')}")
    return found


def data_faults(results: ResultsDict, allow: Collection[str]) -> list[str]:
    """Licences of the rows that are in the weights, and personal data that was found in them."""
    found: list[str] = []
    for name, card in trained_tasks(results).items():
        where, licence = f"data/card.json, {name}", str(card.get("licence"))
        use = commercial_use(card)
        if is_without_derivatives(licence):
            found.append(f"{where}: its licence ({licence}) allows no work derived from it.\n    Train without it.")
        elif use is Commercial.FORBIDDEN and "non_commercial" not in allow:
            found.append(
                f"{where}: its licence forbids commercial use ({licence}).\n"
                f"    Train without it.{_or('non_commercial')} The model's licence has to forbid it as well."
            )
        elif use is Commercial.UNKNOWN and "unknown_licence" not in allow:
            found.append(
                f"{where}: its licence is {licence!r}.\n    State it in metadata.licence of the task file."
                f"{_or('unknown_licence')}"
            )
        personal = card.get("personal_data")
        if personal and personal["rows"] and personal["policy"] != "redact" and "personal_data" not in allow:
            kinds = ", ".join(f"{kind} {count}" for kind, count in personal["kinds"].items())
            found.append(
                f"{where}: personal data in {personal['rows']} rows ({kinds}).\n"
                f"    Set data.pii: redact and run again.{_or('personal_data')}"
            )
    return found


def licence_faults(
    results: ResultsDict, licence: str | None, base_licence: str | None, allow: Collection[str]
) -> list[str]:
    """The licence of what is published: stated, and no wider than those of base and data.

    Args:
        results: Of the run.
        licence: As the user states it; None takes the base's.
        base_licence: As the hub has it; None where it says nothing.
        allow: Names of `ALLOWABLE`.
    """
    base = results["recipe"]["base_model"]["path"]
    forbidden = [name for name, card in trained_tasks(results).items() if commercial_use(card) is Commercial.FORBIDDEN]
    found: list[str] = []
    if base_licence and is_without_derivatives(base_licence):
        found.append(f"{base}: the base's licence ({base_licence}) allows no work derived from it.\n    Take another.")
    if base_licence and is_non_commercial(base_licence):
        forbidden.append(base)
        if "non_commercial" not in allow:
            found.append(
                f"{base}: the base's licence is {base_licence}.\n    Take another base.{_or('non_commercial')}"
            )
    if is_unknown(licence or base_licence or ""):
        found.append(
            f"{base}: the licence of the base cannot be looked up, so that of the model is unknown.\n"
            "    State it, as the hub names it: licence=apache-2.0."
        )
    elif forbidden and not is_non_commercial(licence or base_licence or "") and licence != "other":
        found.append(
            f"licence: {licence or base_licence} is wider than the licence of {', '.join(forbidden)}, which forbids "
            "commercial use.\n    State one that forbids it as well: licence=cc-by-nc-4.0, or licence=other."
        )
    return found


def _or(name: str) -> str:
    return f" If you have cleared it, allow {name}."
