"""Train: TRL's SFTTrainer and a PEFT adapter on the prepared examples."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_tune.errors import JobFailed
from sllm_tune.model.find import Base
from sllm_tune.model.lineage import record
from sllm_tune.model.load import compute_dtype
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.recipe.train import TrainSection
from sllm_tune.run.files import write_json, write_jsonl
from sllm_tune.run.folder import Run
from sllm_tune.run.machine import require_free_bytes
from sllm_tune.run.stage import Inputs, Making
from sllm_tune.tasks.of_recipe import content
from sllm_tune.train.assemble import Job, assemble
from sllm_tune.train.checkpoints import last_whole_checkpoint

if TYPE_CHECKING:
    from torch.nn import Module

    from sllm_tune.train.trainer import AnswerTrainer

NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")  # of torch


class TrainInputs(Inputs):
    """What an adapter is made of."""

    base_model: Base
    """The model that is trained: the recipe's, or what its steps made of it."""

    train: TrainSection
    seed: int


def inputs(recipe: Recipe, base: Base, run: Run) -> TrainInputs:
    """What training is given of a recipe, and of what the stages before it made."""
    base, files = trained(base, run, is_resized=bool(recipe.resize))
    files |= examples(run, replays=recipe.data.replays_replies)
    return TrainInputs(base_model=base, train=recipe.train, seed=recipe.seed, file=files)


def examples(run: Run, *, replays: bool) -> dict[str, str | None]:
    """The content of the examples that a model is cut by and trained on, those with the base's replies as well."""
    folders = ["data", *(["replay"] if replays else [])]
    names = [f"{folder}/{split}.jsonl" for folder in folders for split in ("train", "validation")]
    return {name: content(run.dir / name) for name in names}


def examples_folder(made: Making) -> Path:
    """Where the examples of `examples` are: those of the domain alone, or with the base's replies among them."""
    return made.made("replay" if "replay/train.jsonl" in made.given.file else "data")


def trained(base: Base, run: Run, *, is_resized: bool) -> tuple[Base, dict[str, str | None]]:
    """The model that is trained, the base or what the recipe's steps made of it, and the files that identify it."""
    if not is_resized:
        return base, base.files()
    steps = {"resize/steps.json": content(run.dir / "resize" / "steps.json")}
    return Base(section=base.section, folder=base.folder, resized=run.dir / "model"), base.files() | steps


def train(given: TrainInputs, made: Making) -> dict[str, Path]:
    """Train the adapter (PEFT), from the last whole checkpoint where there is one.

    Under `accelerate launch` or `torchrun` every process trains and only rank 0 writes.

    Raises:
        DataError: a split is empty. RecipeError: the options train nothing. BadInput: the disk cannot hold the
            checkpoints. JobFailed: a number is none, nothing was learned, or memory or disk ran out.
    """
    work = made.work
    with failure_explained(work):
        trainer = make_trainer(given, examples_folder(made), work)
        world_size = int(trainer.args.world_size)
        made.record["world_size"] = world_size
        if world_size > 1 and trainer.is_world_process_zero():
            print(f"train: {world_size} processes", file=sys.stderr, flush=True)
        # Scoring writes the merged model, when the checkpoints are gone.
        merged_bytes = compute_dtype().itemsize * sum(p.numel() for p in trainer.module.parameters())
        require_free_bytes(work, merged_bytes, "the adapter and the merged model of this run")
        fit(trainer, work)
        if trainer.is_world_process_zero():
            base = given.base_model
            _save_adapter(trainer, base, work)
            rows = made.made("data/train.jsonl")
            record(base.path, base.section.revision, base.name, rows, work / "lineage.json", work / "adapter")
            write_json(work / "probe.json", trainer.probed())
    outputs = {"adapter": work / "adapter"}
    return outputs | {f"train/{name}": work / name for name in ("metrics.jsonl", "lineage.json", "probe.json")}


def trainer_class() -> type[AnswerTrainer]:
    """The trainer; its module brings torch and TRL."""
    from sllm_tune.train.trainer import AnswerTrainer

    return AnswerTrainer


def make_trainer(given: TrainInputs, data: Path, out: Path) -> AnswerTrainer:
    """TRL's trainer over the examples in `data`, as the recipe describes it; nothing runs yet."""
    base, options = given.base_model, given.train
    job = Job(base.path, base.section, data, out, options.sft, options.lora, given.seed, "train")
    return assemble(job, trainer_class())


def fit(trainer: AnswerTrainer, work: Path) -> None:
    """Train to the end, from the last whole checkpoint in `work` where there is one.

    Raises:
        BadInput: the disk cannot hold the checkpoints.
        JobFailed: a loss, a gradient or a weight is NaN or infinite, or no weight changed.
    """
    # Two kept, one being written, and the result itself.
    require_free_bytes(work, 4 * _checkpoint_bytes(trainer.module), "the checkpoints of this run")
    checkpoint = last_whole_checkpoint(work)
    if checkpoint and trainer.is_world_process_zero():
        print(f"train: resuming from step {checkpoint.name.rpartition('-')[2]}", file=sys.stderr, flush=True)
    before = _sums(trainer.module)
    with _inputs_as_they_are(trainer.module):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _evaluate_last(trainer)
    trainer.require_finite_weights()
    if trainer.state.global_step == 0 or _sums(trainer.module) == before:
        raise JobFailed(
            f"train: {trainer.state.global_step} steps changed no weight, so nothing was learned.\n"
            f"  Look at learning_rate (now {trainer.args.learning_rate:g}), max_grad_norm and the number of steps."
        )


@contextlib.contextmanager
def _inputs_as_they_are(model: Module) -> Generator[None]:
    """Keeps PEFT from turning hidden states into the adapters' float32 (TRL makes them bfloat16 on a quantised base).

    Under autocast the adapters are turned to bfloat16 instead, which is faster everywhere, most of all on a CPU.
    PEFT's own `disable_input_dtype_casting` knows no trained tokens.
    """
    layers: list[Any] = [part for part in model.modules() if getattr(part, "cast_input_dtype_enabled", False)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True


def _sums(model: Module) -> list[float]:
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


def _evaluate_last(trainer: AnswerTrainer) -> None:
    """The evaluation that ends an epoch, where a run was cut off between the last checkpoint and it."""
    evaluated = {row["step"] for row in trainer.state.log_history if "eval_loss" in row}
    if trainer.args.eval_strategy == "epoch" and trainer.state.global_step not in evaluated:
        trainer.evaluate()


def _checkpoint_bytes(model: Module) -> int:
    """Adapter and two AdamW moments, in the adapter's dtype."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _save_adapter(trainer: AnswerTrainer, base: Base, work: Path) -> None:
    """`adapter/` and `metrics.jsonl` in the work folder, with no local path in them."""
    adapter = work / "adapter"
    model: Any = trainer.model
    for config in model.peft_config.values():
        config.base_model_name_or_path = base.name
        config.revision = base.revision
    model.save_pretrained(adapter, save_embedding_layers=False)  # LoRA leaves them as they are
    trainer.tokenizer.save_pretrained(adapter)
    (adapter / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    write_jsonl(work / "metrics.jsonl", trainer.state.log_history)
