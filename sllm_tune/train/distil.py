"""Healing: a cut model is trained to predict as the original does, and as the examples go on.

Sources:
    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531: the divergence from the
        teacher's probabilities beside the cross-entropy of the right answer.
    Gu et al. 2023, MiniLLM, arXiv:2306.08543: the reverse divergence, which a small student can bring to zero where the
        teacher is sure, instead of spreading over all that the teacher thinks possible.
    Muralidharan et al. 2024, arXiv:2407.14679: pruned models healed by their original with few tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sllm_tune.errors import ModelError
from sllm_tune.model.checkpoint import save_plain
from sllm_tune.model.load import compute_dtype, load_model, load_tokenizer
from sllm_tune.model.merge import merge
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.resize import Distill
from sllm_tune.runs.machine import Meter, require_free_bytes
from sllm_tune.runs.processes import rank, wait_until
from sllm_tune.tasks.encode import IGNORED, Encoder, Tokens
from sllm_tune.train.assemble import Job, assemble, encode_rows
from sllm_tune.train.stage import failure_explained, fit
from sllm_tune.train.teacher import TopK, write_top_k

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from sllm_tune.train.distiller import Distiller


def distill(step: Distill, job: Job, teacher: Path, out: Path) -> dict[str, float | int | None]:
    """Train the job's checkpoint on its examples and write the healed one to `out`.

    Under `accelerate launch` every process trains and the first writes. A run that was cut off goes on from the last
    whole checkpoint.

    Args:
        step: What the recipe asks for.
        job: The training, of a checkpoint with its tokenizer.
        teacher: The original, with its tokenizer; every token of the student's must be one of the teacher's.
        out: A folder to make.

    Returns:
        `healed_tokens`, the number that had loss, each epoch's counted; `loss`, the training's at its end, in nats a
        token; `world_size`, the processes; `heal_seconds`.

    Raises:
        ModelError: the teacher's vocabulary lacks tokens of the student's.
    """
    from transformers import AutoConfig

    base, work = job.base, job.out
    tokenizer = load_tokenizer(job.path, base)
    # A tokenizer may know more than the model has rows for, as Gemma 3's does.
    vocab_size = AutoConfig.from_pretrained(job.path).vocab_size
    places = teacher_tokens(tokenizer, load_tokenizer(str(teacher), base))[:vocab_size]
    encoder = Encoder(tokenizer, chat_template=base.chat_template)
    rows = encode_rows(job.data / "train.jsonl", encoder, answers_only=job.answers_only)
    meter = Meter()
    kept = work / "teacher"
    if step.teacher_top_k:
        _keep(step.teacher_top_k, teacher, base, rows, places, kept)
    trainer = assemble(job, distiller())
    if kept.exists():
        trainer.teach(TopK(kept, rows), places, step)
    else:
        trainer.teach(load_model(str(teacher), base) if step.share else None, places, step)
    with failure_explained(work):
        fit(trainer, work)
        if trainer.is_world_process_zero():
            healed: Any = trainer.model
            if step.lora is None:
                save_plain(healed.to("cpu", compute_dtype()), trainer.tokenizer, out)
            else:
                healed.save_pretrained(work / "adapter", save_embedding_layers=False)
                merge(job.path, base, work / "adapter", out, trainer.probed())
    trainer.accelerator.wait_for_everyone()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seen = sum(label != IGNORED for row in rows for label in row.labels)
    return {
        "healed_tokens": round(seen * trainer.state.epoch),
        "loss": logged[-1] if logged else None,
        "world_size": int(trainer.args.world_size),
        "heal_seconds": meter.stop()["seconds"],
    }


def _keep(k: int, teacher: Path, base: BaseModelSection, rows: list[Tokens], places: list[int], kept: Path) -> None:
    """Let the first process ask the teacher, while there is no student in memory; the others wait for the file."""
    if rank() > 0:
        wait_until(kept.exists)
    elif not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        require_free_bytes(kept.parent, 6 * k * sum(len(row.input_ids) for row in rows), "the teacher's probabilities")
        write_top_k(load_model(str(teacher), base), rows, places, k, kept)


def teacher_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> list[int]:
    """The teacher's id of each token of the student's vocabulary, which may be a part of it.

    Raises:
        ModelError: the teacher does not know a token.
    """
    own, known = student.get_vocab(), teacher.get_vocab()
    unknown = [token for token in own if token not in known]
    if unknown:
        raise ModelError(
            f"distill: the teacher has another vocabulary; {len(unknown)} of the student's {len(own)} tokens "
            f"are not in it, such as {unknown[0]!r}.\n  Take the model that the student was cut from."
        )
    places = [0] * (max(own.values()) + 1)
    for token, place in own.items():
        places[place] = known[token]
    return places


def divergence(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Kullback-Leibler divergence in nats, summed over positions.

    Args:
        student: Log-probabilities `(positions, tokens)`.
        teacher: Log-probabilities of the same shape.
        kind: `forward_kl`, the teacher's probabilities weigh, or `reverse_kl`, the student's.
    """
    from torch.nn.functional import kl_div

    if kind == "reverse_kl":
        student, teacher = teacher, student
    return kl_div(student, teacher, reduction="sum", log_target=True)


def distiller() -> type[Distiller]:
    """The trainer that heals; its module brings torch and TRL."""
    from sllm_tune.train.distiller import Distiller

    return Distiller
