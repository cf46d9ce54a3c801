"""A finished run to a model hub: what would be pushed, why it must not be, and one commit that holds it.

The client is `huggingface_hub` as it is: it finds the hub by HF_ENDPOINT and the token by HF_TOKEN or its login, sends
what the hub does not have yet, and makes no commit of what has not changed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sllm_tune.deliver.card import Asked, Terms, model_card
from sllm_tune.deliver.hub import HubBase, find_hub_base, require_valid_card, talking
from sllm_tune.deliver.leaks import find_leaks, own_secrets
from sllm_tune.deliver.refusals import (
    ALLOWABLE,
    data_faults,
    figure_faults,
    licence_faults,
    lineage_faults,
    read_results,
    run_faults,
)
from sllm_tune.errors import BadInput
from sllm_tune.evaluate.plain import ResultsDict
from sllm_tune.model.find import HUB_ID
from sllm_tune.model.load import load_encoder
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.publish import PublishSection
from sllm_tune.runs.folder import Run, open_run
from sllm_tune.tasks.kept import authored_path, read_authored
from sllm_tune.wording import hint, listed

STAGES = {"adapter": "train", "merged": "merge"}  # which made the folder of a format's name
RESUMES = " What has arrived is not sent again."


@dataclass(frozen=True)
class Plan:
    """What is pushed, or would be."""

    repo: str
    """`owner/name`."""

    format: str
    """"adapter" or "merged"."""

    private: bool
    """Whether a repository that is made is visible to its owner only."""

    files: dict[str, Path | bytes]
    """By its name in the repository: where a file lies, or what it holds; README.md among them."""

    commit: str | None = None
    """Address of the commit; None in a dry run."""

    is_new: bool = False
    """Whether the push made a commit; False where the hub had all of it."""

    @property
    def card(self) -> str:
        """The text of README.md."""
        return _bytes(self.files["README.md"]).decode()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: len(at) if isinstance(at, bytes) else at.stat().st_size for name, at in self.files.items()}


def publish(
    run_dir: Path | str,
    repo: str | None = None,
    *,
    format: str | None = None,
    yes: bool = False,
    private: bool | None = None,
    licence: str | None = None,
    base_id: str | None = None,
    allow: Collection[str] = (),
) -> Plan:
    """Pushes a run's adapter or merged model with its card to a hub, in one commit; by default it only says what.

    A push that was cut short is taken up by calling this again. Files of the repository that the run does not have are
    left as they are.

    Args:
        run_dir: Of a run that is finished, to its scores; locked meanwhile.
        repo: `owner/name`; made if it is not there. None of this and of what follows is as the recipe's `publish` says.
        format: "adapter" or "merged".
        yes: Push; else nothing is sent, though the hub may be asked for the base.
        private: Whether a repository that is made is visible to its owner only; one that is public is refused.
        licence: Of what is published, as the hub names it; without one it is the base's, where the hub knows it.
        base_id: The base's id on the hub, where the recipe has it from elsewhere.
        allow: Names of `ALLOWABLE`: reasons against it that the user has cleared.

    Raises:
        BadInput: the run must not be published, with every reason that is found; or the hub refuses the name, the
            token or the files.
        RunFolderError: another process works in the run folder, or what it holds is damaged.
        JobFailed: the hub cannot be reached, or went away.
    """
    folder = Path(run_dir)
    said = _recipes_publish(folder)
    repo, format = repo or said.repo, format or said.format
    licence, base_id = licence or said.licence, base_id or said.base_id
    private = said.private if private is None else private
    if repo is None:
        raise BadInput("repo: not named.\n  Name it with --repo OWNER/NAME, or as publish.repo in the recipe.")
    _require_arguments(repo, format, base_id, allow)
    read_results(folder)  # before the lock, which is a file in the folder
    with open_run(folder) as run:
        plan = _plan(run, Plan(repo, format, private, {}), licence, base_id, allow)
        return _push(plan) if yes else plan


def describe(plan: Plan) -> str:
    """A plan for the terminal: where to, who can see it, each file with its size, and the card."""
    sizes = plan.sizes
    width = max(map(len, sizes))
    who = "private" if plan.private else "public: everybody can read it"
    lines = [f"{plan.repo} ({who}), {plan.format}, {len(sizes)} files, {_size(sum(sizes.values()))}"]
    lines += [f"  {name:<{width}}  {_size(size):>9}" for name, size in sizes.items()]
    if plan.commit:
        done = "pushed" if plan.is_new else "nothing changed since the last push; no commit made"
        return "\n".join([*lines, f"{done}: {plan.commit}"])
    card = "".join(f"  | {line}\n" for line in plan.card.splitlines())
    return "\n".join([*lines, "README.md:", card, "Nothing was sent. To push it, say so: --yes"])


def _recipes_publish(folder: Path) -> PublishSection:
    """What the run's recipe says of publishing; one of an earlier version says nothing."""
    try:
        recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        return PublishSection.model_validate(recipe.get("publish", {}))
    except FileNotFoundError:
        return PublishSection()  # what is missing in the run is said later
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BadInput(
            f"{folder / 'recipe.json'}: cannot be read ({error!r:.100}).\n  Run the recipe again."
        ) from error


def _require_arguments(repo: str, format: str, base_id: str | None, allow: Collection[str]) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for key, name in (("repo", repo), *((("base_id", base_id),) if base_id is not None else ())):
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise BadInput(f"{key}: {error}") from error
        if "/" not in name:
            raise BadInput(f"{key}: {name!r} has no owner.\n  Write owner/name, as the hub does.")
    if format not in STAGES:
        raise BadInput(f"format: no {format!r}; there are {listed(STAGES, 'and')}{hint(format, STAGES)}")
    for name in allow:
        if name not in ALLOWABLE:
            raise BadInput(f"allow: no {name!r}; there are {listed(ALLOWABLE, 'and')}{hint(name, ALLOWABLE)}")


def _plan(run: Run, plan: Plan, licence: str | None, base_id: str | None, allow: Collection[str]) -> Plan:
    """The plan with its files, after every check; those that need the hub come last."""
    _require(run, plan, run_faults(run))
    results = read_results(run.dir)
    hub_id, revision = (base_id, None) if base_id else _recipes_base(run, results)
    faults = lineage_faults(run, results) + figure_faults(results, allow) + data_faults(results, allow)
    files, more = _files(run, plan.format)
    secrets = own_secrets()
    faults += more
    for name, at in files.items():
        faults += find_leaks(f"{plan.format}/{name}", at, run.dir, secrets)
    if plan.format == "adapter" and (hub_id is None or (results.get("resize") and not base_id)):
        why = "was resized in this run" if results.get("resize") else "is not on a hub"
        faults.append(
            f"adapter: its base, {results['recipe']['base_model']['path']}, {why}, so nobody could load it.\n"
            "    Publish the merged model (format merged), or name the base's id on the hub (base_id)."
        )
    _require(run, plan, faults)
    base = None
    if hub_id is not None and (plan.format == "adapter" or licence is None):
        base = find_hub_base(hub_id, revision)
        faults += _base_faults(base, results, allow) if plan.format == "adapter" else []
    base_licence = base.licence if base else None
    _require(run, plan, faults + licence_faults(results, licence, base_licence, allow))
    terms = Terms(plan.repo, licence or base_licence or "", hub_id, base_licence)
    if plan.format == "adapter":
        files["adapter_config.json"] = _adapter_config(files["adapter_config.json"], hub_id, revision)
    card = model_card(results, terms, plan.format, _asked(run, results)).encode()
    _require(run, plan, find_leaks("README.md", card, run.dir, secrets))
    return replace(plan, files={"README.md": card, **files})


def _asked(run: Run, results: ResultsDict) -> Asked | None:
    """How the task that it was trained for is asked; None where there are several, or lm-eval brings it."""
    trained = results["recipe"]["data"]["tasks"]
    if len(trained) != 1 or not authored_path(run.dir, trained[0]).exists():
        return None
    description = str(read_authored(run.dir, trained[0]).config.get("description") or "")
    merged = str(run.dir / "merged")
    section = BaseModelSection(path=merged, chat_template=results["recipe"]["base_model"]["chat_template"])
    is_text = "{{" not in description and "{%" not in description  # else it is another for every row
    return Asked(load_encoder(merged, section), description if is_text else "")


def _require(run: Run, plan: Plan, faults: list[str]) -> None:
    if faults:
        count = "1 reason" if len(faults) == 1 else f"{len(faults)} reasons"
        reasons = "".join(f"\n  {fault}" for fault in faults)
        raise BadInput(f"{run.dir}: not to be published to {plan.repo}, for {count}:{reasons}")


def _files(run: Run, format: str) -> tuple[dict[str, Path | bytes], list[str]]:
    """What a stage recorded of a format's folder, and what lies there besides."""
    folder = run.dir / format
    made = run.files(STAGES[format])
    recorded = {name.removeprefix(f"{format}/") for name in made if name.startswith(f"{format}/")}
    files: dict[str, Path | bytes] = {}
    faults: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name not in recorded):
            faults.append(f"{path}: {STAGES[format]} did not make this.\n    Take it out of the folder.")
        if path.is_file() and name != "README.md":  # an empty one, as libraries write; the card takes its place
            files[name] = path
    return files, faults


def _recipes_base(run: Run, results: ResultsDict) -> tuple[str | None, str | None]:
    """Id and revision of the base where the recipe has it from a hub; None for a local one."""
    try:
        base = json.loads((run.dir / "recipe.json").read_text(encoding="utf-8"))["base_model"]
        path, revision = base["path"], base["revision"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(
            f"{run.dir / 'recipe.json'}: cannot be read ({error!r:.100}).\n  Run the recipe again."
        ) from error
    public = results["recipe"]["base_model"]["path"]  # of a local path only its last part
    if path != public or path.startswith((".", "~", "/")) or path.endswith(".gguf"):
        return None, None
    return (path, revision) if "/" in path and HUB_ID.fullmatch(path) else (None, None)


def _base_faults(base: HubBase, results: ResultsDict, allow: Collection[str]) -> list[str]:
    trained = results["lineage"]["base_sha256"]
    if trained in base.content_sha256 or "base" in allow:
        return []
    return [
        f"adapter: trained on another base than {base.id}, by the content hash of its weights ({trained[:16]}).\n"
        "    Name the base it was trained on (base_id), or publish the merged model. Bytes also differ where the base\n"
        "    was dequantised from GGUF or stored in another format: if you have compared the answers, allow base."
    ]


def _adapter_config(config: Path | bytes, base: str | None, revision: str | None) -> bytes:
    """PEFT's configuration with the base by the name that the hub has it under."""
    values = json.loads(_bytes(config))
    values |= {"base_model_name_or_path": base, "revision": revision}
    return (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode()


def _push(plan: Plan) -> Plan:
    """One commit of what the hub does not have yet; the repository is made where it is missing."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise BadInput(f"{plan.repo}: no token to push with.\n  Set HF_TOKEN, or log in: hf auth login.")
    require_valid_card(plan.card)
    api = HfApi()
    with talking(plan.repo, RESUMES):
        api.create_repo(plan.repo, private=plan.private, exist_ok=True)
        before = api.model_info(plan.repo)
        _require_place(plan, before.private, {file.rfilename for file in before.siblings or []})
        operations = [CommitOperationAdd(name, at) for name, at in plan.files.items()]
        made = api.create_commit(plan.repo, operations, commit_message=f"{plan.format} and card, by sllm-tune")
    return replace(plan, commit=str(made.commit_url), is_new=made.oid != before.sha)


def _require_place(plan: Plan, is_private: bool | None, there: set[str]) -> None:
    """That a repository is as hidden as the plan says, and holds no model of another format, which would be loaded."""
    if plan.private and is_private is False:
        raise BadInput(
            f"{plan.repo}: it is there and public, and this model is to be private.\n"
            "  Make it private on the hub, name another repository, or publish in public on purpose."
        )
    others = {"adapter": "model.safetensors", "merged": "adapter_config.json"}
    if others[plan.format] in there:
        raise BadInput(
            f"{plan.repo}: it holds another kind of model ({others[plan.format]}); libraries would load a mixture.\n"
            "  Name another repository, or empty this one on the hub."
        )


def _bytes(at: Path | bytes) -> bytes:
    return at if isinstance(at, bytes) else at.read_bytes()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
