"""The steps of a recipe's `resize`, as the recipe writes them."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from sllm_tune.recipe.section import Section


def _in_units(**units: int) -> BeforeValidator:
    """Reads text such as `100M` as a whole number, where a whole number may stand as well."""
    form = rf"^([0-9]+(?:\.[0-9]+)?)({'|'.join(units)})$"
    example = f"100{list(units)[1]}"

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        if (found := re.match(form, value)) is None:
            raise PydanticCustomError(
                "units",
                "must be a whole number or one such as {example} (got '{value}')",
                {"example": example, "value": value},
            )
        return round(float(found[1]) * units[found[2]])

    whole, text = Annotated[int, Field(gt=0)], Annotated[str, Field(pattern=form)]
    return BeforeValidator(read, json_schema_input_type=whole | text)


class TrimVocabulary(Section):
    """Drop the tokens that the training examples never use."""

    kind: Literal["trim_vocabulary"]
    """The step."""

    keep_first: int = Field(default=0, ge=0)
    """So many tokens are kept, in the order of their ids, used or not: the first are the most frequent ones."""


class PruneDepth(Section):
    """Drop the layers that count least on the training examples."""

    kind: Literal["prune_depth"]
    """The step."""

    keep: int = Field(gt=0)
    """Layers to keep."""

    method: Literal["block_influence", "angular_distance", "loss"] = "block_influence"
    """What a layer counts: how much it turns its input, how far a block of layers moves it, or the loss without it."""


class PruneWidth(Section):
    """Narrow every layer to the parts that answer most strongly to the training examples."""

    kind: Literal["prune_width"]
    """The step."""

    intermediate_size: int | None = Field(default=None, gt=0)
    """Neurons to keep of each feed-forward layer; null keeps all."""

    num_attention_heads: int | None = Field(default=None, gt=0)
    """Query heads to keep of each layer, a multiple of those that share a key-value head; null keeps all."""

    hidden_size: int | None = Field(default=None, gt=0)
    """Channels to keep of the residual stream; null keeps all."""

    @model_validator(mode="after")
    def _narrows_something(self) -> Self:
        if self.intermediate_size is None and self.num_attention_heads is None and self.hidden_size is None:
            raise PydanticCustomError("prune_width", "needs intermediate_size, num_attention_heads or hidden_size")
        return self


class UpscaleDepth(Section):
    """Put two overlapping copies of the layers on top of each other (SOLAR)."""

    kind: Literal["upscale_depth"]
    """The step."""

    overlap: int = Field(gt=0)
    """Layers left out at the end of the first copy and at the beginning of the second."""


_OF_ANOTHER_LOSS = {"label_smoothing_factor": 0, "loss_type": "nll", "router_aux_loss_coef": None}


class Distill(Section):
    """Heal: train what the steps before made to predict as the original base does."""

    kind: Literal["distill"]
    """The step."""

    divergence: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    """From teacher to student (forward) or from student to teacher."""

    share: float = Field(default=0.5, ge=0, le=1)
    """Weight of the divergence; the rest is the weight of the cross-entropy of the examples' own tokens."""

    teacher_top_k: int | None = Field(default=None, gt=0)
    """Of the teacher's probabilities so many are computed once and read from disk; null asks it at every step."""

    tokens: Literal["answer", "all"] = "all"
    """Whether the loss is on the tokens of the answers only, or on those of the prompts too."""

    lora: dict[str, Any] | None = None
    """Options of `peft.LoraConfig`, merged when it is done; null trains all weights."""

    sft: dict[str, Any] = Field(default={})
    """Options of `trl.SFTConfig`."""

    @model_validator(mode="after")
    def _asks_a_teacher_that_counts(self) -> Self:
        if self.teacher_top_k is not None and self.share == 0:
            raise PydanticCustomError("distill", "teacher_top_k needs a share above 0: no teacher is asked")
        for name, default in _OF_ANOTHER_LOSS.items():
            if self.sft.get(name, default) != default:
                raise PydanticCustomError(
                    "distill", "sft.{name} acts in a loss, and healing has its own", {"name": name}
                )
        return self


class Quantize(Section):
    """Store the weights in fewer bits; the adapter is trained on them, and merged into them at full width."""

    kind: Literal["quantize"]
    """The step; the last one."""

    quantization: dict[str, Any]
    """Options of `transformers.BitsAndBytesConfig`, such as `{load_in_8bit: true}`."""


class Fit(Section):
    """Search depth, width and vocabulary together for the best model under a limit."""

    kind: Literal["fit"]
    """The step."""

    max_parameters: Annotated[int, Field(gt=0), _in_units(K=10**3, M=10**6, B=10**9)] | None = None
    """Most parameters: a whole number, or one such as `100M`."""

    max_bytes: Annotated[int, Field(gt=0), _in_units(KB=10**3, MB=10**6, GB=10**9)] | None = None
    """Most bytes of weights: a whole number, or one such as `200MB`."""

    min_speedup: float | None = Field(default=None, gt=1)
    """Least tokens per second over those of the model before."""

    @model_validator(mode="after")
    def _has_one_limit(self) -> Self:
        if sum(limit is not None for limit in (self.max_parameters, self.max_bytes, self.min_speedup)) != 1:
            raise PydanticCustomError("fit", "needs one of max_parameters, max_bytes and min_speedup")
        return self


Step = Annotated[
    TrimVocabulary | PruneDepth | PruneWidth | UpscaleDepth | Distill | Quantize | Fit, Field(discriminator="kind")
]
