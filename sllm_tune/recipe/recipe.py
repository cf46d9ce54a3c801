"""The recipe: its typed shape, and every fault of it reported at once.

Options of other libraries are not declared again: `train.lora`, `train.sft` and `base_model.quantization` are held
against `peft.LoraConfig`, `trl.SFTConfig` and `transformers.BitsAndBytesConfig` in `options.py`.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

import yaml
from pydantic import Field, JsonValue, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sllm_tune.errors import RecipeError
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.data import DataSection
from sllm_tune.recipe.evaluate import EvaluateSection
from sllm_tune.recipe.faults import Problem, own_problem, position
from sllm_tune.recipe.file import apply_overrides, as_yaml, find_recipe, of_python, read_yaml
from sllm_tune.recipe.options import check_options
from sllm_tune.recipe.publish import PublishSection
from sllm_tune.recipe.resize import Step
from sllm_tune.recipe.section import SHA256, Section, Text
from sllm_tune.recipe.train import TrainSection
from sllm_tune.wording import hint, listed

_FOLDER_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_PATTERNS = {
    _FOLDER_NAME: "lower-case letters, digits, '.', '_' and '-', the first a letter or digit",
    SHA256: "64 hexadecimal digits",
}

Overrides = Sequence[str] | Mapping[str, object]
FolderName = Annotated[str, Field(pattern=_FOLDER_NAME)]


class HardwareSection(Section):
    """The machine that the estimates of `sllm-tune check` are for."""

    name: Text
    """What it is called, such as L4 or two CPU cores."""

    memory_gb: float = Field(gt=0)
    """Memory of the device that trains, in 10^9 bytes."""

    teraflops: float = Field(gt=0)
    """Its dense peak at the precision that is trained in, usually bfloat16, in 10^12 operations a second."""


class ReportSection(Section):
    """What the reports show."""

    show_items: bool = True
    """Whether items are quoted; false leaves texts, answers and labels out of scores, card and reports."""


class Recipe(Section):
    """One specialisation, from base model and data to the comparison that judges it."""

    name: FolderName
    """Name of the recipe and of its run folder: lower-case letters, digits, '.', '_' and '-'."""

    domain: FolderName
    """Folder of the domain under recipes/."""

    language: Literal["en", "ko"] = "en"
    """Language of the report."""

    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of splits, training and resampling."""

    base_model: BaseModelSection
    """The model that is specialised."""

    data: DataSection
    """What it learns from."""

    resize: list[Step] = Field(default=[])
    """How the base is made smaller or deeper before it learns, step by step."""

    train: TrainSection
    """How it learns."""

    evaluate: EvaluateSection
    """What it is judged by."""

    hardware: HardwareSection | None = None
    """The machine that `sllm-tune check` estimates memory, time and cost for."""

    report: ReportSection = ReportSection()
    """What the reports show."""

    publish: PublishSection = PublishSection()
    """Where `sllm-tune publish` pushes the specialist, and who may see it."""

    _file: Path = PrivateAttr(default=Path("recipe.yaml"))
    _smoke: bool = PrivateAttr(default=False)

    @field_validator("evaluate")
    @classmethod
    def _sources_are_of_tasks(cls, value: EvaluateSection, info: ValidationInfo) -> EvaluateSection:
        if "data" in info.data:
            data = cast(DataSection, info.data["data"])
            replayed = data.replay.tasks if data.replay else []
            known = _task_names(data, value)
            unknown = [name for name in data.source if name not in known]
            if unknown:
                text = "names {names}, not among data.tasks, evaluate.domain and evaluate.general{hint}"
                context = {"names": listed(unknown, "and"), "hint": hint(unknown[0], known)}
                raise PydanticCustomError("source", text, {**context, "key": ("data", "source")})
            twice = [name for name in replayed if name in (*data.tasks, *value.domain, *value.general)]
            if twice:
                text = "names {names}, which the recipe trains on or grades; replay other tasks"
                context = {"names": listed(twice, "and"), "key": ("data", "replay", "tasks")}
                raise PydanticCustomError("replay", text, context)
        return value

    @classmethod
    def from_dict(
        cls, values: Mapping[str, object], overrides: Overrides = (), *, folder: Path | str = "."
    ) -> "Recipe":
        """A recipe that was written in Python, checked as `load_recipe` checks a file.

        Args:
            values: What a recipe's YAML would hold.
            overrides: As those of `load_recipe`.
            folder: Where a recipe's file would lie: task files and relative paths are looked up from it.

        Raises:
            RecipeError: it has faults; all of them are listed, in the order of the values.
        """
        file = Path(folder) / "recipe.yaml"
        return _checked(file, of_python(values, str(file)), [], overrides)

    def __dir__(self) -> list[str]:
        """Its fields and what it can do, for tab completion; pydantic's own names are left out."""
        return sorted([*type(self).model_fields, "folder", "from_dict", "resolved", "smoke", "task_names"])

    def _repr_html_(self) -> str:
        text = yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
        return f"<pre>{html.escape(text)}</pre>"

    @property
    def folder(self) -> Path:
        """The folder of the recipe's file; task files and relative paths are looked up from it."""
        return self._file.parent

    @property
    def smoke(self) -> bool:
        """Whether `smoke` made this recipe, so that its figures mean nothing."""
        return self._smoke

    @property
    def task_names(self) -> list[str]:
        """Every task that it names, once, in its order."""
        return _task_names(self.data, self.evaluate)

    def resolved(self) -> dict[str, JsonValue]:
        """The recipe with its defaults filled in, as plain JSON values: what `recipe.json` of a run folder holds."""
        return self.model_dump(mode="json")


def _task_names(data: DataSection, evaluate: EvaluateSection) -> list[str]:
    replayed = data.replay.tasks if data.replay else []
    return list(dict.fromkeys([*data.tasks, *replayed, *evaluate.domain, *evaluate.general]))


def recipe_schema() -> dict[str, object]:
    """JSON schema (draft 2020-12) of a recipe, for editors.

    The keys of `train.lora`, `train.sft` and `base_model.quantization` are left open: they change with the versions of
    the libraries that own them, and `load_recipe` checks them against the versions that are installed.
    """
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "sllm_tune recipe"}


def load_recipe(path: Path | str, overrides: Overrides = ()) -> Recipe:
    """Reads a recipe, applies overrides and checks everything, the options of other libraries included.

    Args:
        path: A YAML file in UTF-8, or the name of a recipe that comes with the package, such as `legal/quickstart`.
        overrides: Values by their dotted keys, `{"train.sft.learning_rate": 1e-3}`; or `key.path=value` each, the value
            in YAML, later ones win.

    Raises:
        RecipeError: the file cannot be read, or it has faults; all of them are listed, in the order of the file.
    """
    path = find_recipe(path)
    values, problems = read_yaml(path)
    return _checked(Path(path), values, problems, overrides)


def _checked(path: Path, values: dict[object, object], problems: list[Problem], overrides: Overrides) -> Recipe:
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={as_yaml(value)}" for key, value in overrides.items()]
    values, given, refused = apply_overrides(values, overrides)
    checked, faults = check_options(values)
    recipe = None
    try:
        recipe = Recipe.model_validate(checked)
    except ValidationError as error:
        faults += [own_problem(details, Recipe, _PATTERNS) for details in error.errors(include_url=False)]
    problems = problems + refused + sorted(faults, key=lambda fault: position(values, fault.key))
    if problems or recipe is None:
        lines = [f"  {problem.line(given)}" for problem in problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n".join([f"{path}: {count}", *lines]))
    recipe._file = path  # pyright: ignore[reportPrivateUsage]
    return recipe
