"""Assemble: a trainer of a model over the prepared examples, with the recipe's options over our defaults."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sllm_tune.errors import DataError, RecipeError
from sllm_tune.model.adapter import bare_model, try_adapter
from sllm_tune.model.load import compute_dtype, load_model, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.resize import Distill, Step
from sllm_tune.recipe.train import TrainSection
from sllm_tune.run.files import read_jsonl
from sllm_tune.run.machine import keep_freed_memory
from sllm_tune.tasks.encode import Encoder, Tokens
from sllm_tune.train.checkpoints import whole_checkpoints
from sllm_tune.train.schedule import require_training
from sllm_tune.wording import shown

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Generator
    from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from trl import SFTConfig

    from sllm_tune.train.trainer import AnswerTrainer

Trainer = TypeVar("Trainer", bound="AnswerTrainer")

PAD_TO_TOKENS = 16  # few distinct batch shapes: a CPU builds and caches one bf16 primitive a shape


@dataclass(frozen=True)
class Job:
    """One training."""

    path: str
    """The model that is trained."""

    base: BaseModelSection
    """How it is loaded."""

    data: Path
    """Holds `train.jsonl` and `validation.jsonl`."""

    out: Path
    """Where checkpoints go."""

    sft: dict[str, Any]
    """Options of `trl.SFTConfig`."""

    lora: dict[str, Any] | None
    """Options of `peft.LoraConfig`; None trains all weights, kept in float32."""

    seed: int
    key: str
    """Of the recipe, that holds the options."""

    answers_only: bool = True
    """Whether the loss is on the answers only."""


def assemble(job: Job, kind: type[Trainer]) -> Trainer:
    """A trainer of the class `kind`; nothing runs yet.

    Raises:
        DataError: there are no training examples. RecipeError: TRL refuses the options.
    """
    from peft import LoraConfig
    from transformers import set_seed

    tokenizer = load_tokenizer(job.path, job.base)
    encoder = Encoder(tokenizer, chat_template=job.base.chat_template)
    if job.lora is not None:
        try_adapter(bare_model(job.path, job.base)[1], job.lora, f"{job.key}.lora")
    train_rows = _dataset(job.data / "train.jsonl", encoder, answers_only=job.answers_only)
    validation_rows = _dataset(job.data / "validation.jsonl", encoder, answers_only=job.answers_only)
    if len(train_rows) == 0:
        raise DataError(f"{job.data / 'train.jsonl'}: the training split is empty.")
    longest = max(len(ids) for ids in train_rows["input_ids"])
    set_seed(job.seed)
    keep_freed_memory()
    key = f"{job.key}.sft"
    args = _arguments(job.sft, job.seed, job.out, longest, key, has_validation=len(validation_rows) > 0)
    require_training(args, len(train_rows), key)
    model = _model(job, args, longest)
    adapter: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **(job.lora or {})}
    try:
        trainer = kind(
            model=model,
            args=args,
            train_dataset=train_rows,
            eval_dataset=validation_rows if len(validation_rows) else None,
            processing_class=tokenizer,
            peft_config=None if job.lora is None else LoraConfig(**adapter),
            callbacks=[whole_checkpoints()],
        )
    except (ValueError, TypeError, ImportError, KeyError, AttributeError) as error:
        raise RecipeError(f"{job.key}: TRL refuses these options ({error}).") from error
    trainer.add_callback(_epoch_orders(trainer.order, job.seed))
    if not args.bf16:
        # TRL makes the adapters of a quantised base bfloat16, which only autocast to bfloat16 can multiply.
        for parameter in trainer.module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer


def _model(job: Job, args: SFTConfig, longest: int) -> PreTrainedModel:
    """The model that is trained, in the numbers that its options ask for."""
    import torch

    dtype = compute_dtype() if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if job.lora is None:
        dtype = torch.float32  # small updates would be lost in fewer bits
    with_adapter = job.lora is not None
    model = load_model(job.path, job.base, longest_tokens=longest, quantized=with_adapter, dtype=dtype)
    for part in model.modules():
        # At its first eval() bitsandbytes packs 4-bit weights for a CPU kernel that passes no gradient on.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            setattr(part, "support_avx512bf16_for_cpu", False)  # noqa: B010  a name that torch's modules do not declare
    return model


def _arguments(sft: dict[str, Any], seed: int, out: Path, longest: int, key: str, *, has_validation: bool) -> SFTConfig:
    """The recipe's options over our defaults.

    Raises:
        RecipeError: TRL refuses the combination.
    """
    import torch
    from trl import SFTConfig

    on_cpu = sft.get("use_cpu", not torch.cuda.is_available())
    ours: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "use_cpu": on_cpu,
        "bf16": compute_dtype() == torch.bfloat16,
        "max_length": None,  # longer rows were refused by prepare
        "pad_to_multiple_of": PAD_TO_TOKENS,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # it would show another number than the one that was found
        "save_strategy": "steps",
        "save_steps": 50,
        "save_total_limit": 2,
        "eval_strategy": "epoch" if has_validation else "no",
        "per_device_eval_batch_size": sft.get("per_device_train_batch_size", 8),
    }
    # transformers 5.23 renamed it
    checkpointing = (
        "activation_checkpointing" if hasattr(SFTConfig, "activation_checkpointing") else "gradient_checkpointing"
    )
    ours[checkpointing] = not on_cpu and longest > 2048
    _require_possible(sft, key, on_cpu=on_cpu)
    try:
        return SFTConfig(**(ours | sft))
    except Exception as error:  # whatever its own code and that of an optimiser or scheduler trips over
        raise RecipeError(f"{key}: TRL refuses these options together ({error}).") from error


def _require_possible(sft: Mapping[str, object], key: str, *, on_cpu: bool) -> None:
    """Refuse what TRL would trip over, or pass over, when everything is loaded."""
    if sft.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise RecipeError(f"{key}.use_liger_kernel: liger-kernel is not installed.\n  pip install liger-kernel")
    if sft.get("activation_offloading") and on_cpu:
        raise RecipeError(f"{key}.activation_offloading: there is no accelerator whose memory it would spare.")
    best = sft.get("metric_for_best_model")
    if best not in (None, "loss", "eval_loss"):
        raise RecipeError(f"{key}.metric_for_best_model: a training measures its loss only (got {shown(best)}).")


def require_trainable(
    train: TrainSection, resize: Sequence[Step], seed: int, max_length: int, rows: int | None = None
) -> None:
    """Makes the arguments of each training of a recipe once, and throws them away.

    Args:
        train: Options of the adapter's training.
        resize: Steps, of which some may heal.
        seed: Of the recipe.
        max_length: Most tokens of a row.
        rows: Training examples, where they are known; optimizer and schedule are then made as well.

    Raises:
        RecipeError: TRL refuses options together that are right one by one; or as `require_training`.
    """
    steps = [(f"resize[{n}].sft", step.sft) for n, step in enumerate(resize) if isinstance(step, Distill)]
    with tempfile.TemporaryDirectory() as folder:
        for key, sft in [*steps, ("train.sft", train.sft)]:
            args = _arguments(sft, seed, Path(folder), max_length, key, has_validation=True)
            if rows is not None:
                require_training(args, rows, key)


def encode_rows(path: Path, encoder: Encoder, *, answers_only: bool) -> list[Tokens]:
    """The examples of a split as they are trained on; the loss is on the answers, or on every token."""
    rows = [encoder.supervise(row["context"], row["target"], stops=row.get("stops", True)) for row in read_jsonl(path)]
    return rows if answers_only else [Tokens(row.input_ids, row.input_ids) for row in rows]


def _dataset(path: Path, encoder: Encoder, *, answers_only: bool) -> Dataset:
    """The examples of a split, with the ids by which a failure names them."""
    from datasets import Dataset

    rows = encode_rows(path, encoder, answers_only=answers_only)
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    return Dataset.from_dict({**columns, "id": [row["id"] for row in read_jsonl(path)]})


def _epoch_orders(order: Generator, seed: int) -> TrainerCallback:
    from transformers import TrainerCallback

    class EpochOrders(TrainerCallback):
        def on_epoch_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
        ) -> None:
            order.manual_seed(seed + int((state.epoch or 0) + 1e-6))  # 1.0 may be a little less

    return EpochOrders()
