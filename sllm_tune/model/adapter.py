"""Whether an adapter's options fit a model, tried on the model without its weights: every name, and the merge."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sllm_tune.errors import RecipeError
from sllm_tune.model.load import load_config
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.wording import hint

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel


def bare_model(path: str, base: BaseModelSection) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """The configuration at `path`, and the model that it describes, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(path, base)
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code)


def try_adapter(model: PreTrainedModel, options: dict[str, Any], key: str) -> int:
    """Put the adapter on a model without weights and merge it, as training and scoring will do.

    Args:
        model: As `bare_model` makes it; it is changed.
        options: Of `peft.LoraConfig`.
        key: Where the recipe has them.

    Returns:
        The number of parameters that are trained.

    Raises:
        RecipeError: a name matches nothing in the model, or the adapter cannot be put on it or be merged into it.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    names = [name for name, _ in model.named_modules() if name]
    _require_names(model, names, options, key)
    tied = _tied(model)
    lora: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # said again when the adapter is put on the weights
        try:
            config = LoraConfig(**lora)
            adapted = get_peft_model(model, config)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
            raise RecipeError(f"{key}: this adapter cannot be put on the base ({_first(error)}).") from error
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        _require_patterns(adapted, config, key)
        if touched := sorted(_changed(adapted) & tied):
            raise RecipeError(
                f"{key}: the base has one tensor for its input and its output embeddings, and this adapter would train "
                f"{' and '.join(touched)} apart from the other.\n"
                "  Leave it out; trainable_token_indices trains single tokens in both."
            )
        if options.get("kasa_config") is not None:
            return trained  # it reads the weights
        try:
            adapted.merge_and_unload()
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise RecipeError(f"{key}: this adapter cannot be merged into the base ({_first(error)}).") from error
    return trained


def _require_names(model: PreTrainedModel, names: list[str], options: dict[str, Any], key: str) -> None:
    """Every name and pattern that chooses modules chooses one; PEFT asks only that all together do."""
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        asked = options.get(option)
        if isinstance(asked, str):
            if asked != "all-linear" and not any(_fullmatch(asked, name, f"{key}.{option}") for name in names):
                raise RecipeError(f"{key}.{option}: the pattern '{asked}' matches no module of the base")
        else:
            _require_each(asked or (), names, _ends_with, f"{key}.{option}", "module")
    parameters = [name for name, _ in model.named_parameters()]
    _require_each(options.get("target_parameters") or (), parameters, _ends_with, f"{key}.target_parameters", "tensor")
    tokens = options.get("trainable_token_indices")
    if isinstance(tokens, dict):
        _require_each(tokens, names, _ends_with, f"{key}.trainable_token_indices", "module")
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    for index in [i for part in tokens.values() for i in part] if isinstance(tokens, dict) else tokens or []:
        if not 0 <= index < rows:
            raise RecipeError(f"{key}.trainable_token_indices: the base has no token {index}; its last is {rows - 1}")
    layers = options.get("layers_to_transform")
    numbers = {int(part) for name in names for part in name.split(".") if part.isdigit()}
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if layer not in numbers:
            raise RecipeError(f"{key}.layers_to_transform: the base has no layer {layer}; its last is {max(numbers)}")
    patterns = options.get("layers_pattern")
    lists = {name.rpartition(".")[0].rpartition(".")[2] for name in names if name.rpartition(".")[2].isdigit()}
    asked = [patterns] if isinstance(patterns, str) else patterns or []
    _require_each(asked, lists, lambda name, wanted: name == wanted, f"{key}.layers_pattern", "list of layers")


def _require_patterns(adapted: PeftModel, config: LoraConfig, key: str) -> None:
    """Every pattern that gives modules a rank or strength of their own meets one of those that are adapted."""
    targets: list[str] = adapted.targeted_module_names
    for option, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns or ():
            if not any(_fullmatch(rf"(.*\.)?({pattern})", name, f"{key}.{option}") for name in targets):
                near = hint(pattern, {name.rpartition(".")[2] for name in targets})
                raise RecipeError(f"{key}.{option}: '{pattern}' matches no module that is adapted{near}")


def _require_each(
    asked: Iterable[str], names: Iterable[str], matches: Callable[[str, str], bool], key: str, what: str
) -> None:
    for wanted in asked:
        if not any(matches(name, wanted) for name in names):
            ends = {name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()}
            raise RecipeError(f"{key}: '{wanted}' matches no {what} of the base{hint(wanted, ends)}")


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _fullmatch(pattern: str, name: str, key: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise RecipeError(f"{key}: '{pattern}' is not a regular expression ({error})") from error


def _tied(model: PreTrainedModel) -> set[str]:
    """The names of the input and output embeddings where they are one tensor."""
    if not model.config.get_text_config().tie_word_embeddings:
        return set()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in model.named_modules() if any(module is end for end in ends)}


def _changed(adapted: PeftModel) -> set[str]:
    """Modules that the adapter changes or replaces as a whole."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    return {name.removeprefix("base_model.model.") for name, part in adapted.named_modules() if isinstance(part, kinds)}


def _first(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
