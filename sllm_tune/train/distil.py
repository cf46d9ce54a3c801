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
from sllm_tune.model.probe import probe
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.recipe.resize import Distill
from sllm_tune.run.machine import Meter, require_free_bytes
from sllm_tune.run.processes import rank, wait_until
from sllm_tune.tasks.encode import IGNORED, Encoder, Tokens
from sllm_tune.train.assemble import Job, assemble, encode_rows
from sllm_tune.train.stage import failure_explained, fit
from sllm_tune.train.teacher import TopK, with_rest, write_top_k
from sllm_tune.train.trainer import trainer_class

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_TOKENS = 256  # of logits in float32 at a time: 50 MB for a vocabulary of 49 thousand


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
    tokenizer: Any = load_tokenizer(job.path, base)
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
            if step.lora is None:
                save_plain(trainer.model.to("cpu", compute_dtype()), trainer.processing_class, out)
            else:
                trainer.model.save_pretrained(work / "adapter", save_embedding_layers=False)
                trained = probe(trainer.model, trainer.eval_dataset or trainer.train_dataset)
                merge(job.path, base, work / "adapter", out, trained)
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


def teacher_tokens(student: Any, teacher: Any) -> list[int]:
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


def distiller() -> Any:
    """The class of the trainer that heals."""
    import torch
    from torch.nn.functional import nll_loss

    class Distiller(trainer_class()):
        def teach(self, teacher: Any, places: list[int], step: Distill) -> None:
            """Set what it learns from, a model, a `TopK` or nothing; called once, before training."""
            self.teacher = teacher
            if isinstance(teacher, torch.nn.Module):
                self.teacher = teacher.requires_grad_(False).to(self.args.device)
            self.places = torch.tensor(places, device=self.args.device)
            self.step = step

        def compute_loss(  # type: ignore[override]
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if return_outputs or not model.training:  # an evaluation: the plain cross-entropy
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            labels, ids, mask = inputs["labels"], inputs["input_ids"], inputs["attention_mask"]
            # The logits at t predict the token at t + 1, so they are needed where the next label counts.
            columns = (labels[:, 1:] != IGNORED).any(0).nonzero().flatten()
            asked = {"attention_mask": mask, "use_cache": False, "logits_to_keep": columns}
            answers = labels[:, columns + 1]
            counted = answers != IGNORED
            logits, answers = model(input_ids=ids, **asked).logits[counted], answers[counted]
            likeliest = taught = None
            if isinstance(self.teacher, TopK):
                likeliest, taught = self.teacher.of(ids, mask)
            elif self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(input_ids=self.places[ids], **asked).logits[counted]
            total = logits.new_zeros((), dtype=torch.float32)
            # Split, not sliced: the gradient of a slice is as large as that of the whole, once for every chunk.
            for chunk, own in enumerate(logits.split(CHUNK_TOKENS)):
                at = slice(chunk * CHUNK_TOKENS, (chunk + 1) * CHUNK_TOKENS)
                own = own.float()[:, : len(self.places)].log_softmax(-1)
                if self.step.share < 1:
                    total = total + (1 - self.step.share) * nll_loss(own, answers[at], reduction="sum")
                if taught is None:
                    continue
                if likeliest is None:
                    theirs = taught[at, self.places].float().log_softmax(-1)
                else:
                    own, theirs = with_rest(own.gather(1, likeliest[at])), with_rest(taught[at])
                total = total + self.step.share * divergence(own, theirs, self.step.divergence)
            if num_items_in_batch is None:
                return total / max(1, len(answers))
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return total / torch.as_tensor(num_items_in_batch).clamp(min=1) * processes

    return Distiller
