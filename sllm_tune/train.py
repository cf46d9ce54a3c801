"""Train: TRL's SFTTrainer and a PEFT adapter on the prepared examples."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_tune.encode import IGNORED, Encoder, Tokens
from sllm_tune.errors import DataError, RecipeError, RunFolderError
from sllm_tune.hardware import Meter, keep_freed_memory, require_free_bytes
from sllm_tune.lineage import record
from sllm_tune.model import compute_dtype, load_model, load_tokenizer, public_name, trained_base
from sllm_tune.recipe import Recipe
from sllm_tune.run import Run, read_jsonl, write_jsonl, write_text

if TYPE_CHECKING:
    from datasets import Dataset

COMPLETE = "complete"  # written into a checkpoint after all of its files; without it the checkpoint is not taken up
PAD_TO_TOKENS = 16  # few distinct batch shapes: a CPU builds and caches one bf16 primitive a shape


def train(recipe: Recipe, run: Run, inputs: dict[str, Any]) -> Path:
    """Train the adapter, from the last whole checkpoint where there is one.

    Under `accelerate launch` or `torchrun` every process trains and only rank 0 writes.

    Returns:
        The run's `adapter/` folder (PEFT).

    Raises:
        DataError: a split is empty. RunFolderError: the disk cannot hold the checkpoints.
    """
    meter = Meter()
    work = run.work("train", inputs)
    trainer = make_trainer(recipe, run.dir / "data", work)
    world_size = int(trainer.args.world_size)
    if world_size > 1 and trainer.is_world_process_zero():
        print(f"train: {world_size} processes", file=sys.stderr, flush=True)
    with disk_full_explained(work):
        fit(trainer, work)
        if trainer.is_world_process_zero():
            _save_adapter(trainer, recipe, work)
            path, base = trained_base(recipe, run.dir), recipe.base_model
            name = _name_of_base(recipe)
            record(run, path, base.revision, name, work / "lineage.json", work / "adapter")
    if trainer.is_world_process_zero():
        outputs = {"adapter": work / "adapter", "train/metrics.jsonl": work / "metrics.jsonl"}
        outputs["train/lineage.json"] = work / "lineage.json"
        run.commit("train", inputs, outputs=outputs, seed=recipe.seed, cost=meter.stop(), world_size=world_size)
    trainer.accelerator.wait_for_everyone()
    return run.dir / "adapter"


def fit(trainer: Any, work: Path) -> None:
    """Train to the end, from the last whole checkpoint in `work` where there is one.

    Raises:
        RunFolderError: the disk cannot hold the checkpoints.
    """
    from peft.helpers import disable_input_dtype_casting

    # Two kept, one being written, and the result itself.
    require_free_bytes(work, 4 * _checkpoint_bytes(trainer.model), "the checkpoints of this run")
    checkpoint = _last_whole_checkpoint(work)
    # PEFT would turn hidden states into the adapters' float32 (TRL makes them bfloat16 on a quantised base). Under
    # autocast the adapters are turned to bfloat16 instead, which is faster everywhere, most of all on a CPU.
    adapted = hasattr(trainer.model, "peft_config")
    with disable_input_dtype_casting(trainer.model) if adapted else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _evaluate_last(trainer)


@contextlib.contextmanager
def disk_full_explained(work: Path) -> Generator[None]:
    """Turns what a full disk raises into a RunFolderError with the mend."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # safetensors wraps ENOSPC in an error of its own
        if "No space left" in str(error) or getattr(error, "errno", None) == 28:
            raise RunFolderError(
                f"{work}: the disk is full, so the checkpoint was not written; what was made before is untouched.\n"
                "  Free some space and run the same command again: it goes on from the last whole checkpoint."
            ) from error
        raise


def _evaluate_last(trainer: Any) -> None:
    """The evaluation that ends an epoch, where a run was cut off between the last checkpoint and it."""
    evaluated = {row["step"] for row in trainer.state.log_history if "eval_loss" in row}
    if trainer.args.eval_strategy == "epoch" and trainer.state.global_step not in evaluated:
        trainer.evaluate()


def make_trainer(recipe: Recipe, data: Path, out: Path) -> Any:
    """TRL's trainer over the examples in `data`, as the recipe describes it; nothing runs yet."""
    path = trained_base(recipe, data.parent)
    return assemble(recipe, path, data, out, recipe.train.sft, recipe.train.lora, trainer_class())


def assemble(
    recipe: Recipe,
    path: str,
    data: Path,
    out: Path,
    sft: dict[str, Any],
    lora: dict[str, Any] | None,
    kind: Any,
    *,
    answers_only: bool = True,
) -> Any:
    """A trainer of the model at `path` over the examples in `data`; nothing runs yet.

    Args:
        recipe: Its base, seed and the rest.
        path: The model that is trained.
        data: Holds `train.jsonl` and `validation.jsonl`.
        out: Where checkpoints go.
        sft: Options of `trl.SFTConfig`.
        lora: Options of `peft.LoraConfig`; None trains all weights, kept in float32.
        kind: The class of the trainer, of `trainer_class`.
        answers_only: Whether the loss is on the answers only.

    Raises:
        DataError: there are no training examples. RecipeError: TRL refuses the options.
    """
    import torch
    from peft import LoraConfig
    from transformers import set_seed

    tokenizer = load_tokenizer(path, recipe.base_model)
    encoder = Encoder(tokenizer, chat_template=recipe.base_model.chat_template)
    train_rows = _dataset(encode_rows(data / "train.jsonl", encoder, answers_only=answers_only))
    validation_rows = _dataset(encode_rows(data / "validation.jsonl", encoder, answers_only=answers_only))
    if len(train_rows) == 0:
        raise DataError(f"{data / 'train.jsonl'}: the training split is empty.")
    longest = max(len(ids) for ids in train_rows["input_ids"])
    set_seed(recipe.seed)
    keep_freed_memory()
    args = _arguments(recipe, sft, out, longest, has_validation=len(validation_rows) > 0)
    dtype = compute_dtype() if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if lora is None:
        dtype = torch.float32  # small updates would be lost in fewer bits
    model: Any = load_model(path, recipe.base_model, longest_tokens=longest, quantized=lora is not None, dtype=dtype)
    for part in model.modules():
        # At its first eval() bitsandbytes packs 4-bit weights for a CPU kernel that passes no gradient on.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    adapter: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **(lora or {})}
    trainer = kind(
        model=model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=validation_rows if len(validation_rows) else None,
        processing_class=tokenizer,
        peft_config=None if lora is None else LoraConfig(**adapter),
        callbacks=[_whole_checkpoints()],
    )
    trainer.add_callback(_epoch_orders(trainer.order, recipe.seed))
    return trainer


def _arguments(recipe: Recipe, sft: dict[str, Any], out: Path, longest: int, *, has_validation: bool) -> Any:
    """The recipe's options over our defaults.

    Raises:
        RecipeError: TRL refuses the combination.
    """
    import torch
    from trl import SFTConfig

    on_cpu = sft.get("use_cpu", not torch.cuda.is_available())
    ours: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": "none",
        "use_cpu": on_cpu,
        "bf16": compute_dtype() == torch.bfloat16,
        "max_length": None,  # longer rows were refused by prepare
        "pad_to_multiple_of": PAD_TO_TOKENS,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 10,
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
    try:
        return SFTConfig(**(ours | sft))
    except (ValueError, TypeError, ImportError) as error:
        key = "train.sft" if sft is recipe.train.sft else "sft of a distill step"
        raise RecipeError(f"{key}: TRL refuses these options together ({error}).") from error


def trainer_class() -> Any:
    """SFTTrainer, which on a CPU projects only the answer's positions onto the vocabulary.

    TRL's fused head does that with Triton; elsewhere it scores every position, and for a small model whose answers are
    short that is most of the work. And an epoch's order depends on the seed and the epoch alone, so that a run that was
    cut off in its second epoch goes on with the rows that it had not seen.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from transformers.trainer_pt_utils import LengthGroupedSampler
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        order = torch.Generator()  # of the rows in an epoch; `_epoch_orders` seeds it

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(train_dataset)
            if isinstance(sampler, LengthGroupedSampler):
                sampler.generator = self.order
            return sampler

        def compute_loss(  # type: ignore[override]
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs["labels"]
            if labels.device.type != "cpu" or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # The logits at t predict the token at t + 1, so they are needed where the next label counts.
            columns = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
            answers = labels[:, columns + 1]
            summed = cross_entropy(
                logits.float().flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            if num_items_in_batch is None:
                return summed / (answers != IGNORED).sum().clamp(min=1)
            # Like TRL: the count is over all processes, and DDP averages their gradients.
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return summed / torch.as_tensor(num_items_in_batch).clamp(min=1) * processes

    return AnswerTrainer


def encode_rows(path: Path, encoder: Encoder, *, answers_only: bool) -> list[Tokens]:
    """The examples of a split as they are trained on; the loss is on the answers, or on every token."""
    rows = [encoder.supervise(row["context"], row["target"]) for row in read_jsonl(path)]
    return rows if answers_only else [Tokens(row.input_ids, row.input_ids) for row in rows]


def _dataset(rows: list[Tokens]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})


def _whole_checkpoints() -> Any:
    from transformers import TrainerCallback

    class WholeCheckpoints(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, "")

    return WholeCheckpoints()


def _epoch_orders(order: Any, seed: int) -> Any:
    from transformers import TrainerCallback

    class EpochOrders(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            order.manual_seed(seed + int((state.epoch or 0) + 1e-6))  # 1.0 may be a little less

    return EpochOrders()


def _last_whole_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones are removed by rank 0."""
    found = sorted((work / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    whole = [path for path in found if (path / COMPLETE).exists()]
    if int(os.environ.get("RANK", "0")) == 0:
        for path in set(found) - set(whole):
            shutil.rmtree(path)
    return whole[-1] if whole else None


def _checkpoint_bytes(model: Any) -> int:
    """Adapter and two AdamW moments, in the adapter's dtype."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _name_of_base(recipe: Recipe) -> str:
    """The resized model lies beside the adapter, in the run folder."""
    return "../model" if recipe.resize else public_name(recipe.base_model, recipe.folder)


def _save_adapter(trainer: Any, recipe: Recipe, work: Path) -> None:
    """`adapter/` and `metrics.jsonl` in the work folder, with no local path in them."""
    adapter = work / "adapter"
    for config in trainer.model.peft_config.values():
        config.base_model_name_or_path = _name_of_base(recipe)
        config.revision = None if recipe.resize else recipe.base_model.revision
    trainer.model.save_pretrained(adapter, save_embedding_layers=False)  # LoRA leaves them as they are
    trainer.processing_class.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    write_jsonl(work / "metrics.jsonl", trainer.state.log_history)
