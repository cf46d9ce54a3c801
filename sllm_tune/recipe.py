"""The recipe: its typed shape, and every fault of it reported at once.

Options of other libraries are not declared again: `train.lora`, `train.sft` and `base_model.quantization` are held
against `peft.LoraConfig`, `trl.SFTConfig` and `transformers.BitsAndBytesConfig` in `options.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sllm_tune.errors import RecipeError
from sllm_tune.faults import hint, listed, own_problem, position
from sllm_tune.faults import nearest as nearest
from sllm_tune.options import check_options
from sllm_tune.recipe_file import apply_overrides, find_recipe, read_yaml
from sllm_tune.steps import Section, Step

_FOLDER_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_SHA256 = r"^[0-9a-fA-F]{64}$"
_PATTERNS = {
    _FOLDER_NAME: "lower-case letters, digits, '.', '_' and '-', the first a letter or digit",
    _SHA256: "64 hexadecimal digits",
}

FolderName = Annotated[str, Field(pattern=_FOLDER_NAME)]
Text = Annotated[str, Field(min_length=1)]


def _distinct(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PydanticCustomError("repeated", "names {names} more than once", {"names": listed(twice, "and")})
    return names


class BaseModelSection(Section):
    """The general model that is specialised."""

    path: Text
    """Where the model is: `pypi:NAME==VERSION/path/in/wheel`, a hub id, a local folder or a local .gguf file."""

    revision: Text | None = None
    """Revision (commit, tag or branch) of a hub id."""

    sha256: Annotated[str, Field(pattern=_SHA256)] | None = Field(default=None, validate_default=True)
    """SHA-256 of the wheel in 64 hexadecimal digits; required where `path` starts with `pypi:`."""

    family: Literal["smollm2", "llama3", "solar", "midm", "phi3", "gemma3", "hyperclovax"] | None = None
    """Whose architecture and chat template a `--smoke` run imitates; nothing else looks at it."""

    chat_template: bool = True
    """Whether prompts go through the model's chat template: one choice for training, scoring and serving."""

    quantization: dict[str, Any] | None = None
    """Options of `transformers.BitsAndBytesConfig`; `{load_in_4bit: true, bnb_4bit_quant_type: nf4}` is QLoRA."""

    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run on this machine."""

    @field_validator("sha256")
    @classmethod
    def _recorded_for_wheels(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and str(info.data.get("path", "")).startswith("pypi:"):
            raise PydanticCustomError("sha256", "required for a pypi: path; record the SHA-256 of the wheel")
        return None if value is None else value.lower()


class LimitSection(Section):
    """How many rows of each task are used at most, by split."""

    train: int | None = Field(default=None, gt=0)
    """Most training examples; null uses all."""

    validation: int | None = Field(default=None, gt=0)
    """Most validation examples, on which settings are chosen; null uses all."""

    test: int | None = Field(default=None, gt=0)
    """Most test examples, scored once a run; null uses all."""


class ReplaySection(Section):
    """General examples mixed into the training, against forgetting."""

    tasks: list[Text] = Field(min_length=1)
    """Tasks whose training rows are mixed in; none that the recipe trains on or grades."""

    share: float = Field(gt=0, lt=1)
    """Their share of all training examples, drawn in a seeded order and divided evenly over the tasks."""

    _tasks_distinct = field_validator("tasks")(_distinct)


class DataSection(Section):
    """What the specialist learns from."""

    tasks: list[Text] = Field(min_length=1)
    """Tasks to train on: task files of the domain, or names that lm-evaluation-harness ships."""

    source: dict[str, Text] = Field(default={})
    """For a task, the local file to read instead of its own source, or of the hub for a task of lm-eval."""

    limit: LimitSection = LimitSection()
    """Upper bounds on the sizes of the splits."""

    max_length: int = Field(default=1024, gt=0)
    """Most tokens of prompt plus answer of a training row; the base's window where that is less."""

    on_long: Literal["refuse", "drop"] = "refuse"
    """Whether a row that is too long to be trained on or graded ends the run, or is left out and counted."""

    replay: ReplaySection | None = None
    """General examples mixed in against forgetting; null mixes in none."""

    on_leak: Literal["refuse", "drop"] = "refuse"
    """Whether a training row that gives away a graded one ends the run, or is left out and counted."""

    allow_leaks: list[Text] = Field(default=[])
    """Graded tasks whose items may be among the training rows; the report lists what was found of them."""

    pii: Literal["report", "redact", "refuse"] | None = None
    """What is done about personal data in rows: counted, replaced as well, or the run ends; null does not look."""

    leave_out: Text | None = None
    """File with ids of rows that must not be used, one a line, as after a deletion request."""

    _tasks_distinct = field_validator("tasks")(_distinct)


class TrainSection(Section):
    """How the adapter is trained."""

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning on the answers."""

    lora: dict[str, Any] = Field(default={})
    """Options of `peft.LoraConfig`."""

    sft: dict[str, Any] = Field(default={})
    """Options of `trl.SFTConfig`."""


class GateSection(Section):
    """What must hold for the run to succeed; each is compared with the bound of the 95 % interval, not its middle."""

    min_gain: float
    """Least gain over the base on each domain task, in units of its metric (0.05 is five points of accuracy)."""

    max_forgetting: float | None = Field(default=None, ge=0)
    """Most loss against the base on the general tasks, in units of their metric; null does not look."""


class EvaluateSection(Section):
    """What the specialist, its base and the controls are scored on."""

    domain: list[Text] = Field(min_length=1)
    """Tasks of the domain that are scored."""

    general: list[Text] = Field(default=[])
    """Tasks of general ability, to measure what was forgotten."""

    limit_general: int | None = Field(default=None, gt=0)
    """Items of each general task, the first in a seeded order; null uses all."""

    num_fewshot: int = Field(default=5, ge=0)
    """Worked examples in the prompt of the `base_fewshot` control; 0 leaves the control out."""

    batch_size: int = Field(default=16, gt=0)
    """Items scored together."""

    usd_per_hour: float | None = Field(default=None, ge=0)
    """Price of this hardware in US dollars an hour, from which `usd_per_million_tokens` follows."""

    gate: GateSection | None = None
    """Conditions that decide the exit status; null sets none."""

    _tasks_distinct = field_validator("domain", "general")(_distinct)

    @field_validator("general")
    @classmethod
    def _not_of_the_domain(cls, value: list[str], info: ValidationInfo) -> list[str]:
        both = [name for name in value if name in info.data.get("domain", [])]
        if both:
            raise PydanticCustomError(
                "both_kinds", "names {names}, which evaluate.domain names too", {"names": listed(both, "and")}
            )
        return value

    @field_validator("gate")
    @classmethod
    def _can_be_measured(cls, value: GateSection | None, info: ValidationInfo) -> GateSection | None:
        if value and value.max_forgetting is not None and info.data.get("general") == []:
            key = ("evaluate", "gate", "max_forgetting")
            raise PydanticCustomError("gate", "needs at least one task in evaluate.general", {"key": key})
        return value


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

    _file: Path = PrivateAttr(default=Path("recipe.yaml"))
    _smoke: bool = PrivateAttr(default=False)

    @field_validator("evaluate")
    @classmethod
    def _sources_are_of_tasks(cls, value: EvaluateSection, info: ValidationInfo) -> EvaluateSection:
        if "data" in info.data:
            data = cast(DataSection, info.data["data"])
            replayed = data.replay.tasks if data.replay else []
            known = [*data.tasks, *replayed, *value.domain, *value.general]
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

    @property
    def folder(self) -> Path:
        """The folder of the recipe's file; task files and relative paths are looked up from it."""
        return self._file.parent

    @property
    def smoke(self) -> bool:
        """Whether `smoke` made this recipe: its figures mean nothing."""
        return self._smoke

    def resolved(self) -> dict[str, Any]:
        """The recipe with its defaults filled in, as plain JSON values: what `recipe.json` of a run folder holds."""
        return self.model_dump(mode="json")


def recipe_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors.

    The keys of `train.lora`, `train.sft` and `base_model.quantization` are left open: they change with the versions of
    the libraries that own them, and `load_recipe` checks them against the versions that are installed.
    """
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "sllm_tune recipe"}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, applies overrides and checks everything, the options of other libraries included.

    Args:
        path: A YAML file in UTF-8, or the name of a recipe that comes with the package, such as `legal/quickstart`.
        overrides: `key.path=value` each, the value in YAML; later ones win.

    Raises:
        RecipeError: the file cannot be read, or it has faults; all of them are listed, in the order of the file.
    """
    path = find_recipe(path)
    values, problems = read_yaml(path)
    values, given, refused = apply_overrides(values, overrides)
    checked, faults = check_options(values)
    recipe = None
    try:
        recipe = Recipe.model_validate(checked)
    except ValidationError as error:
        faults += [own_problem(details, Recipe, _PATTERNS) for details in error.errors(include_url=False)]
    problems += refused + sorted(faults, key=lambda fault: position(values, fault.key))
    if problems or recipe is None:
        lines = [f"  {problem.line(given)}" for problem in problems]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n".join([f"{path}: {count}", *lines]))
    recipe._file = Path(path)  # pyright: ignore[reportPrivateUsage]
    return recipe
