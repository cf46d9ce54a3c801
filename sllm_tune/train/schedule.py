"""What a training's options make of it before it runs: its steps, and the learning rate of each."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, cast

from sllm_tune.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTConfig


def require_training(args: SFTConfig, rows: int, key: str) -> None:
    """Refuse options under which nothing would be learned, and say where the learning rate never gets to its height.

    Args:
        args: Options of the training.
        rows: Training examples.
        key: Where the recipe has the options.

    Raises:
        RecipeError: no step, a learning rate that is 0 at every step, or an optimizer or schedule that cannot be made.
    """
    _require_optimizer(args, key)
    batch = args.train_batch_size * args.world_size
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    if batches == 0:
        raise RecipeError(
            f"{key}.dataloader_drop_last: there are {rows} training rows and a batch has {batch}, so every row would "
            "be dropped and nothing trained.\n  Leave it out, or make per_device_train_batch_size smaller."
        )
    steps_in_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_in_epoch)
    rates = _rates(args, steps, key)
    if not max(rates, default=1):
        raise RecipeError(
            f"{key}: the learning rate is 0 at every one of the {steps} steps (lr_scheduler_type "
            f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}, warmup_steps {args.warmup_steps:g}), "
            "so nothing would be trained.\n  Make warmup_steps smaller, or train for more steps."
        )
    warmup = args.get_warmup_steps(steps)
    if rates and warmup >= steps:
        print(
            f"train: warmup_steps are {warmup}, and there are {steps} steps: the learning rate only rises, to "
            f"{max(rates):.3g} of {args.learning_rate:.3g}",
            file=sys.stderr,
            flush=True,
        )


def _require_optimizer(args: SFTConfig, key: str) -> None:
    """Make the optimizer of one weight: training would make its own only when everything is loaded."""
    import torch
    from transformers import Trainer

    if args.optim_target_modules is not None:  # it looks for them in the model
        return
    model = cast("PreTrainedModel", torch.nn.Linear(1, 1))  # any module will do
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not {"model", "params", "optimizer_dict"}.intersection(options):  # of the few that take a whole model
            kind(model.parameters(), **options)
    except Exception as error:  # whatever the library that the optimizer is of trips over
        raise RecipeError(f"{key}: this optimizer cannot be made ({' '.join(str(error).split())}).") from error


def _rates(args: SFTConfig, steps: int, key: str) -> list[float]:
    """The learning rate at each step; empty for a schedule that follows the validation loss."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import get_scheduler

    options: Any = args.lr_scheduler_kwargs  # text that is no dictionary is refused below
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=options,
        )
        if not isinstance(schedule, LambdaLR):
            return []
        return [args.learning_rate * schedule.lr_lambdas[0](step) for step in range(steps)]
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise RecipeError(f"{key}: this schedule of the learning rate cannot be made ({error}).") from error
