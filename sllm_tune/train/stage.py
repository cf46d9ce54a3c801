"""Train: TRL's SFTTrainer and a PEFT adapter on the prepared examples."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_tune.errors import DataError, JobFailed, RecipeError
from sllm_tune.model.adapter import bare_model, try_adapter
from sllm_tune.model.find import public_name, trained_base
from sllm_tune.model.lineage import record
from sllm_tune.model.load import compute_dtype, load_model, load_tokenizer
from sllm_tune.model.probe import probe
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.recipe.resize import Distill
from sllm_tune.run.files import read_jsonl, write_json, write_jsonl
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import Meter, keep_freed_memory, require_free_bytes
from sllm_tune.tasks.encode import Encoder, Tokens
from sllm_tune.train.checkpoints import last_whole_checkpoint, whole_checkpoints
from sllm_tune.train.schedule import require_training
from sllm_tune.train.trainer import trainer_class
from sllm_tune.wording import shown

if TYPE_CHECKING:
    from datasets import Dataset

NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")  # of torch
PAD_TO_TOKENS = 16  # few distinct batch shapes: a CPU builds and caches one bf16 primitive a shape


def train(recipe: Recipe, run: Run, inputs: dict[str, Any]) -> Path:
    """Train the adapter, from the last whole checkpoint where there is one.

    Under `accelerate launch` or `torchrun` every process trains and only rank 0 writes.

    Returns:
        The run's `adapter/` folder (PEFT).

    Raises:
        DataError: a split is empty. RecipeError: the options train nothing. BadInput: the disk cannot hold the
            checkpoints. JobFailed: a number is none, nothing was learned, or memory or disk ran out.
    """
    meter = Meter()
    work = run.work("train", inputs)
    with failure_explained(work):
        trainer = make_trainer(recipe, run.dir / "data", work)
        world_size = int(trainer.args.world_size)
        if world_size > 1 and trainer.is_world_process_zero():
            print(f"train: {world_size} processes", file=sys.stderr, flush=True)
        # Scoring writes the merged model, when the checkpoints are gone.
        merged_bytes = compute_dtype().itemsize * sum(p.numel() for p in trainer.model.parameters())
        require_free_bytes(work, merged_bytes, "the adapter and the merged model of this run")
        fit(trainer, work)
        if trainer.is_world_process_zero():
            _save_adapter(trainer, recipe, work)
            path, base = trained_base(recipe, run.dir), recipe.base_model
            name = _name_of_base(recipe)
            record(run, path, base.revision, name, work / "lineage.json", work / "adapter")
            write_json(work / "probe.json", probe(trainer.model, trainer.eval_dataset or trainer.train_dataset))
    if trainer.is_world_process_zero():
        outputs = {"adapter": work / "adapter", "train/metrics.jsonl": work / "metrics.jsonl"}
        outputs |= {f"train/{name}": work / name for name in ("lineage.json", "probe.json")}
        run.commit("train", inputs, outputs=outputs, seed=recipe.seed, cost=meter.stop(), world_size=world_size)
    trainer.accelerator.wait_for_everyone()
    return run.dir / "adapter"


def fit(trainer: Any, work: Path) -> None:
    """Train to the end, from the last whole checkpoint in `work` where there is one.

    Raises:
        BadInput: the disk cannot hold the checkpoints.
        JobFailed: a loss, a gradient or a weight is NaN or infinite, or no weight changed.
    """
    # Two kept, one being written, and the result itself.
    require_free_bytes(work, 4 * _checkpoint_bytes(trainer.model), "the checkpoints of this run")
    checkpoint = last_whole_checkpoint(work)
    before = _sums(trainer.model)
    with _inputs_as_they_are(trainer.model):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _evaluate_last(trainer)
    trainer.require_finite_weights()
    if trainer.state.global_step == 0 or _sums(trainer.model) == before:
        raise JobFailed(
            f"train: {trainer.state.global_step} steps changed no weight, so nothing was learned.\n"
            f"  Look at learning_rate (now {trainer.args.learning_rate:g}), max_grad_norm and the number of steps."
        )


@contextlib.contextmanager
def _inputs_as_they_are(model: Any) -> Generator[None]:
    """Keeps PEFT from turning hidden states into the adapters' float32 (TRL makes them bfloat16 on a quantised base).

    Under autocast the adapters are turned to bfloat16 instead, which is faster everywhere, most of all on a CPU.
    PEFT's own `disable_input_dtype_casting` knows no trained tokens.
    """
    layers = [part for part in model.modules() if getattr(part, "cast_input_dtype_enabled", False)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True


def _sums(model: Any) -> list[float]:
    """A number for each tensor that is trained, which changes with it."""
    return [float(p.detach().double().abs().sum()) for p in model.parameters() if p.requires_grad]


@contextlib.contextmanager
def failure_explained(work: Path) -> Generator[None]:
    """Turns what a full disk and a full memory raise while training into a JobFailed with the fix."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:  # safetensors wraps ENOSPC in an error of its own
        if "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise JobFailed(
                f"{work}: the disk is full, so the checkpoint was not written; what was made before is untouched.\n"
                "  Free some space and run the same command again: it goes on from the last whole checkpoint."
            ) from error
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
            raise JobFailed(
                f"train: out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}).\n"
                "  Halve per_device_train_batch_size and double gradient_accumulation_steps, which trains the same.\n"
                "  If that is not enough: activation_checkpointing: true, base_model.quantization, or a smaller base."
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

    key = "train.sft" if sft is recipe.train.sft else "sft of a distill step"
    tokenizer = load_tokenizer(path, recipe.base_model)
    encoder = Encoder(tokenizer, chat_template=recipe.base_model.chat_template)
    if lora is not None:
        try_adapter(bare_model(path, recipe.base_model)[1], lora, key.replace("sft", "lora"))
    train_rows = _dataset(data / "train.jsonl", encoder, answers_only=answers_only)
    validation_rows = _dataset(data / "validation.jsonl", encoder, answers_only=answers_only)
    if len(train_rows) == 0:
        raise DataError(f"{data / 'train.jsonl'}: the training split is empty.")
    longest = max(len(ids) for ids in train_rows["input_ids"])
    set_seed(recipe.seed)
    keep_freed_memory()
    args = _arguments(recipe, sft, out, longest, key, has_validation=len(validation_rows) > 0)
    require_training(args, len(train_rows), key)
    dtype = compute_dtype() if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if lora is None:
        dtype = torch.float32  # small updates would be lost in fewer bits
    model: Any = load_model(path, recipe.base_model, longest_tokens=longest, quantized=lora is not None, dtype=dtype)
    for part in model.modules():
        # At its first eval() bitsandbytes packs 4-bit weights for a CPU kernel that passes no gradient on.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    adapter: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **(lora or {})}
    try:
        trainer = kind(
            model=model,
            args=args,
            train_dataset=train_rows,
            eval_dataset=validation_rows if len(validation_rows) else None,
            processing_class=tokenizer,
            peft_config=None if lora is None else LoraConfig(**adapter),
            callbacks=[whole_checkpoints()],
        )
    except (ValueError, TypeError, ImportError, KeyError, AttributeError) as error:
        raise RecipeError(f"{key.removesuffix('.sft')}: TRL refuses these options ({error}).") from error
    trainer.add_callback(_epoch_orders(trainer.order, recipe.seed))
    return trainer


def _arguments(recipe: Recipe, sft: dict[str, Any], out: Path, longest: int, key: str, *, has_validation: bool) -> Any:
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
    if sft.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise RecipeError(f"{key}.use_liger_kernel: liger-kernel is not installed.\n  pip install liger-kernel")
    if sft.get("activation_offloading") and on_cpu:
        raise RecipeError(f"{key}.activation_offloading: there is no accelerator whose memory it would spare.")
    best = sft.get("metric_for_best_model")
    if best not in (None, "loss", "eval_loss"):
        raise RecipeError(f"{key}.metric_for_best_model: a training measures its loss only (got {shown(best)}).")
    try:
        return SFTConfig(**(ours | sft))
    except Exception as error:  # whatever its own code and that of an optimiser or scheduler trips over
        raise RecipeError(f"{key}: TRL refuses these options together ({error}).") from error


def require_trainable(recipe: Recipe, rows: int | None = None) -> None:
    """Makes the arguments of each training of the recipe once, and throws them away.

    Args:
        recipe: The recipe.
        rows: Training examples, where they are known; optimizer and schedule are then made as well.

    Raises:
        RecipeError: TRL refuses options together that are right one by one; or as `require_training`.
    """
    steps = [(f"resize[{n}].sft", step.sft) for n, step in enumerate(recipe.resize) if isinstance(step, Distill)]
    with tempfile.TemporaryDirectory() as folder:
        for key, sft in [*steps, ("train.sft", recipe.train.sft)]:
            args = _arguments(recipe, sft, Path(folder), recipe.data.max_length, key, has_validation=True)
            if rows is not None:
                require_training(args, rows, key)


def encode_rows(path: Path, encoder: Encoder, *, answers_only: bool) -> list[Tokens]:
    """The examples of a split as they are trained on; the loss is on the answers, or on every token."""
    rows = [encoder.supervise(row["context"], row["target"]) for row in read_jsonl(path)]
    return rows if answers_only else [Tokens(row.input_ids, row.input_ids) for row in rows]


def _dataset(path: Path, encoder: Encoder, *, answers_only: bool) -> Dataset:
    """The examples of a split, with the ids by which a failure names them."""
    from datasets import Dataset

    rows = encode_rows(path, encoder, answers_only=answers_only)
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    return Dataset.from_dict({**columns, "id": [row["id"] for row in read_jsonl(path)]})


def _epoch_orders(order: Any, seed: int) -> Any:
    from transformers import TrainerCallback

    class EpochOrders(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            order.manual_seed(seed + int((state.epoch or 0) + 1e-6))  # 1.0 may be a little less

    return EpochOrders()


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
