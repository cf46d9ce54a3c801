"""Options of other libraries in a recipe, held against the configuration classes of the versions installed."""

import dataclasses
import functools
import inspect
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from importlib import import_module
from typing import Annotated, Any, Literal, TypeGuard, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from sllm_tune.recipe.faults import Problem, expected
from sllm_tune.wording import hint, listed, shown

_OWNERS = {
    ("base_model", "quantization"): "transformers.BitsAndBytesConfig",
    ("train", "lora"): "peft.LoraConfig",
    ("train", "sft"): "trl.SFTConfig",
}
_RANGES: dict[str, FieldInfo] = {
    "learning_rate": Field(gt=0),
    "num_train_epochs": Field(gt=0),
    "max_steps": Field(ge=1),
    "per_device_train_batch_size": Field(ge=1),
    "per_device_eval_batch_size": Field(ge=1),
    "gradient_accumulation_steps": Field(ge=1),
    "warmup_steps": Field(ge=0),
    "weight_decay": Field(ge=0),
    "max_grad_norm": Field(ge=0),
    "adam_beta1": Field(ge=0, lt=1),
    "adam_beta2": Field(ge=0, lt=1),
    "adam_epsilon": Field(gt=0),
    "label_smoothing_factor": Field(ge=0, lt=1),
    "neftune_noise_alpha": Field(ge=0),
    "save_steps": Field(gt=0),  # 0 would keep no checkpoint to go on from
    "eval_steps": Field(gt=0),
    "eval_accumulation_steps": Field(ge=1),
    "r": Field(ge=1),
    "lora_alpha": Field(gt=0),
    "lora_dropout": Field(ge=0, lt=1),
}
_RANGE_FAULTS = ("greater_than", "greater_than_equal", "less_than")
# Values that a library takes although its annotation leaves them out.
_NEEDS_DATA = "it needs a pass over data before training, which sllm_tune does not make"
# Values that a library takes and that would train or merge something else than they say.
_REFUSED: dict[str, dict[str, str]] = {
    "init_lora_weights": {
        r"pissa_niter_\d+": "its decomposition is another one each time, so the merged model is not the trained one; "
        "use pissa",
        "lora_ga|eva|corda": _NEEDS_DATA,
    },
}
_DECIDED: dict[str, dict[str, str]] = {
    "trl.SFTConfig": {
        "output_dir": "checkpoints are kept in the run folder; choose it with --run-dir",
        "seed": "use the recipe's seed",
        "data_seed": "use the recipe's seed",
        "max_length": "use data.max_length",
        "eos_token": "an answer ends with the end of turn of the chat template, or else of the text",
        "dataset_text_field": "examples come from the task files, as prompt and answer",
        "packing": "every example is a row of its own",
        "eval_packing": "every example is a row of its own",
        "completion_only_loss": "only answers are learned",
        "assistant_only_loss": "only answers are learned",
        "report_to": "figures go to train/metrics.jsonl and nowhere else",
        "push_to_hub": "nothing is published",
        "hub_token": "nothing is published, and a recipe is not a place for a secret",
        "resume_from_checkpoint": "a run that was cut off goes on by itself when it is run again",
        "save_only_model": "a run that was cut off could not go on without the optimizer's state",
        "ignore_data_skip": "a run that was cut off would go on with rows that it has seen",
        "logging_nan_inf_filter": "a loss that is not a number ends the training",
        "label_names": "the labels are the ids of the answers",
        "do_train": "which stages are run is said by the command",
        "do_eval": "which stages are run is said by the command",
        "do_predict": "which stages are run is said by the command",
        "padding_free": "every example is a row of its own",
        "save_strategy": "checkpoints are saved so that a run that was cut off can go on",
        "trust_remote_code": "use base_model.trust_remote_code",
        "chat_template_path": "use base_model.chat_template",
        "model_init_kwargs": "use base_model",
    },
    "peft.LoraConfig": {
        "task_type": "the model is a causal language model",
        "peft_type": "the adapter is LoRA",
        "base_model_name_or_path": "use base_model.path",
        "layer_replication": "the merged model would have other layers than its config.json; use resize: upscale_depth",
        "inference_mode": "an adapter is trained with it off and scored with it on",
    },
    "transformers.BitsAndBytesConfig": {},
}
_GONE = {
    "warmup_ratio": "use warmup_steps, which takes a fraction",
    "max_seq_length": "use data.max_length",
}


def check_options(values: dict[object, object]) -> tuple[dict[object, object], list[Problem]]:
    """A recipe's values with the libraries' options in the types that they ask for, and the faults of them."""
    problems: list[Problem] = []
    for (section, name), owner in _OWNERS.items():
        taken, faults = _check_key(values.get(section), name, owner)
        problems += [Problem((section, *fault.key), fault.text) for fault in faults]
        if section in values:
            values = {**values, section: taken}
    if isinstance(steps := values.get("resize"), list):
        checked = list(cast(list[object], steps))
        for number in range(len(checked)):
            for (_, name), owner in _OWNERS.items():
                checked[number], faults = _check_key(checked[number], name, owner)
                problems += [Problem(("resize", number, *fault.key), fault.text) for fault in faults]
        values = {**values, "resize": checked}
    return values, problems


def _check_key(section: object, name: str, owner: str) -> tuple[object, list[Problem]]:
    """A section with the options under `name` in the types that their owner asks for, and the faults of them."""
    given = cast(dict[object, object], section) if isinstance(section, dict) else {}
    options = given.get(name)
    if not isinstance(options, dict):
        return section, []  # left out, or of a wrong type, which the check of our own keys reports
    with warnings.catch_warnings():  # the libraries warn again when the options are used
        warnings.simplefilter("ignore")
        taken, faults = _check_library(owner, cast(dict[object, object], options))
    return {**given, name: taken}, [Problem((name, *fault.key), fault.text) for fault in faults]


def _check_library(owner: str, options: dict[object, object]) -> tuple[dict[object, object], list[Problem]]:
    module, _, class_name = owner.partition(".")
    config = getattr(import_module(module), class_name)
    annotations, decided = annotations_of(config), _DECIDED[owner]
    taken, problems = dict(options), list[Problem]()
    for key, value in options.items():
        if not isinstance(key, str):
            continue  # the check of our own keys reports it
        if key in decided:
            problems.append(Problem((key,), f"set by sllm_tune: {decided[key]}"))
        elif key not in annotations:
            fix = f"; {_GONE[key]}" if key in _GONE else hint(key, annotations.keys() - decided.keys())
            problems.append(Problem((key,), f"unknown key of {owner}{fix}"))
        else:
            try:
                taken[key] = _check_value(key, annotations[key], value)
                _check_name(_names(config).get(key, ()), value)
            except ValueError as error:
                problems.append(Problem((key,), str(error)))
    # SFTConfig is left to the training stage: making one sets up devices and processes.
    named = {key: value for key, value in taken.items() if isinstance(key, str)}
    if not problems and class_name != "SFTConfig" and len(named) == len(taken):
        problems += _construct(config, named)
    return taken, problems


@functools.cache
def annotations_of(config: Callable[..., object]) -> dict[str, object]:
    """The options of a library's configuration class; one without annotation has its default's type, or any."""
    hints = typing.get_type_hints(config)
    return {
        parameter.name: hints.get(parameter.name, Any if parameter.default is None else type(parameter.default))
        for parameter in inspect.signature(config).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    }


@functools.cache
def _names(config: Callable[..., object]) -> dict[str, list[str]]:
    """The values that a library lists for options that it annotates as text."""
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return {field.name: list(field.metadata["choices"]) for field in fields if field.metadata.get("choices")}


def _check_value(key: str, annotation: object, value: object) -> object:
    """`value` as `annotation` asks for it, so that "1e-3" is a number. Raises ValueError with what is wanted."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    got = f"(got {shown(value)})"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number {got}")
    if isinstance(value, str):
        for pattern, reason in _REFUSED.get(key, {}).items():
            if re.fullmatch(pattern, value):
                raise ValueError(f"{value} is not taken: {reason}")
        _check_choice([member for member in members if _is_enum(member)], value)
    try:
        taken = TypeAdapter[object](cast(Any, Annotated)[annotation, _RANGES.get(key)]).validate_python(value)
    except (PydanticUserError, NameError):
        return value  # what the library means by the annotation, only the library knows
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        wanted = expected(first) if first["type"] in _RANGE_FAULTS else _words(members)
        raise ValueError(f"must be {wanted} {got}") from None
    if isinstance(value, bool) and not isinstance(taken, bool):
        raise ValueError(f"must be {_words(members)} {got}")
    if not isinstance(value, dict):
        return taken
    if dataclasses.is_dataclass(taken):  # pydantic and peft both drop its unknown keys without a word
        names = [field.name for field in dataclasses.fields(taken)]
        for name in cast(dict[object, object], value):
            if name not in names:
                raise ValueError(f"unknown key '{name}'{hint(str(name), names)}")
    return value  # and not an object of the library's: recipe.json could not hold it


def _check_choice(enums: list[type[Enum]], value: str) -> None:
    """Refuses what none of `enums` names: libraries annotate such options `Enum | str` and fail much later."""
    _check_name([str(member.value) for enum in enums for member in enum], value)


def _check_name(names: Sequence[str], value: object) -> None:
    """Refuses a text that is none of `names`, if there are any."""
    if names and isinstance(value, str) and value not in names:
        raise ValueError(f"unknown value '{value}'{hint(value, names) or '; one of ' + listed(names, 'or')}")


def _is_enum(annotation: object) -> TypeGuard[type[Enum]]:
    return inspect.isclass(annotation) and issubclass(annotation, Enum)


def _words(members: Iterable[object]) -> str:
    """What the members of a union ask for, in words: (int, None) is "a whole number or null"."""
    names: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    words: list[str] = []
    for member in members:
        origin = typing.get_origin(member) or member
        if origin is Literal:
            words += [shown(choice) for choice in typing.get_args(member)]
        elif origin is list:
            items: dict[tuple[object, ...], str] = {(str,): "a list of text", (int,): "a list of whole numbers"}
            words.append(items.get(typing.get_args(member), "a list"))
        else:
            words.append(names.get(origin, "text" if _is_enum(origin) else "a mapping"))
    # Equal unions share one object in `typing`, whose order is that of whichever was made first.
    *head, tail = sorted(dict.fromkeys(words), key=lambda word: (word == "null", word))
    return f"{', '.join(head)} or {tail}" if head else tail


def _construct(config: Callable[..., Any], options: dict[str, object]) -> list[Problem]:
    """What the library itself has to say against options that are right one by one."""
    try:
        made = config(**options)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        return [Problem((), " ".join(str(error).split()).rstrip("."))]
    if config.__name__ == "BitsAndBytesConfig" and made.quantization_method() is None:
        wanted = "load_in_8bit: true, or load_in_4bit: true with bnb_4bit_quant_type nf4 or fp4"
        return [Problem((), f"quantizes nothing; ask for {wanted}")]
    return []
