"""What answering costs: latency, speed, memory and energy; and how well a model predicts text."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sllm_tune.answer.items import Graded
from sllm_tune.runs.machine import Meter, peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    import torch
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel

    from sllm_tune.answer.local import PackedLM

TIMED_ALONE, TIMED_TOGETHER = 8, 64  # items behind latency_ms and tokens_per_second
Ids = Sequence[Sequence[int]]  # token ids of each text


def measure(lm: PackedLM, task: Graded, *, chat_template: bool) -> dict[str, float | int | None]:
    """Speed and memory on the first items of a task.

    Returns:
        `latency_ms` (median of one item at batch size 1), `tokens_per_second` (prompts and answers, batched),
        `peak_memory_bytes`, `energy_wh` (of the batched part; None without a readable counter).
    """
    task.built.set_config("num_fewshot", 0)
    task.built.build_all_requests(
        samples=task.indices[:TIMED_TOGETHER], apply_chat_template=chat_template, chat_template=lm.apply_chat_template
    )
    by_item: defaultdict[int, list[Instance]] = defaultdict(list)
    for instance in task.built.instances:
        by_item[instance.doc_id or 0].append(instance)
    items = list(by_item.values())
    ask = getattr(lm, items[0][0].request_type)
    ask(items[0], disable_tqdm=True)  # the first call builds kernels
    reset_peak_memory()
    seconds_alone: list[float] = []
    for item in items[:TIMED_ALONE]:
        started = time.monotonic()
        ask(item, disable_tqdm=True)
        seconds_alone.append(time.monotonic() - started)
    together = [instance for item in items for instance in item]
    meter = Meter()
    ask(together, disable_tqdm=True)
    cost = meter.stop()
    tokens = sum(_tokens(lm, item) for item in items)
    return {
        "latency_ms": statistics.median(seconds_alone) * 1e3,
        "tokens_per_second": tokens / (cost["seconds"] or 1e-9),
        "peak_memory_bytes": peak_memory_bytes(),
        "energy_wh": cost["energy_wh"],
    }


def _tokens(lm: PackedLM, item: list[Instance]) -> int:
    """Tokens of an item's prompt, once, and of each of its answers."""
    answers = [args[1] for args in (instance.arguments for instance in item) if isinstance(args[1], str)]
    answers += [text for instance in item if instance.request_type == "generate_until" for text in instance.resps]
    prompt = item[0].arguments[0]
    return len(lm.tok_encode(prompt)) + sum(len(lm.tok_encode(a, add_special_tokens=False)) for a in answers)


def mean_loss(model: PreTrainedModel, texts: Ids) -> float:
    """Nats a token of `texts`, each text's first token left out; exp of it is the perplexity."""
    import torch
    from torch.nn.functional import cross_entropy

    total, tokens = 0.0, 0
    with torch.no_grad():
        for ids in texts:
            row = torch.tensor([ids], device=place_of(model))
            logits = model(input_ids=row, use_cache=False).logits[0, :-1]
            total += float(cross_entropy(logits.float(), row[0, 1:], reduction="sum"))
            tokens += len(ids) - 1
    return total / tokens


def timed_loss(model: PreTrainedModel, texts: Ids) -> tuple[float, float]:
    """`mean_loss`, and the tokens a second that it read, one text after the other."""
    mean_loss(model, texts[:4])  # the first calls build kernels
    started = time.monotonic()
    loss = mean_loss(model, texts)
    return loss, sum(map(len, texts)) / (time.monotonic() - started)


def place_of(model: PreTrainedModel) -> torch.device | str:
    """The device that takes a model's inputs; one whose layers are read from disk as they are needed has none."""
    return "cpu" if model.device.type == "meta" else model.device
