"""Items a second: our scorer against `lm_eval --model hf`, on MedQA's five-option questions and the same base model.

Both get the same questions, chat template, batch size, dtype and softmax dtype (float32), in one process; they take
turns in chunks, so that whatever else the machine does slows both. The harness's backend is made as its command line
makes it, and keeps its own choice of attention.

Measured in bfloat16, as the base is stored, and in float32, where rounding cannot hide what packing does. In bfloat16
the harness disagrees with itself when its batch size or attention kernel changes: answers that are a few tenths of a
nat apart change places. So every answer has to be the same in float32; in bfloat16 the share is shown.

Acceptance: at least 4 times the items per second in both, and the same answer to every question in float32.
Budget: 9 minutes for 100 questions on two cores. Cut short, it goes on from the last whole chunk.
"""

from __future__ import annotations

import sys
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.common import QUICKSTART, Record, parse, parser, sample_rows, task_rows, tiny_base
from sllm_tune import load_recipe
from sllm_tune.model.find import find_base
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.tasks.build import build_over
from sllm_tune.tasks.find import find_task

TASK, HERE = "medqa_5options", Path(__file__).parent
SPEEDUP, CHUNK_ITEMS, SMOKE_ITEMS = 4.0, 25, 4
DTYPES = ("bfloat16", "float32")


def main() -> int:
    options = parser("eval_throughput", __doc__)
    options.add_argument("--items", type=int, default=100, help="questions (default: %(default)s)")
    options.add_argument("--batch-size", type=int, default=16, help="of both (default: %(default)s)")
    given = parse(options)
    items, chunk = (SMOKE_ITEMS, SMOKE_ITEMS // 2) if given.smoke else (given.items, CHUNK_ITEMS)
    record = Record(given, {"items": items, "batch_size": given.batch_size, "chunk_items": chunk})
    figures: dict[str, Any] = {}
    for dtype in DTYPES:
        figures[dtype] = compare(measure(dtype, record))
    record.save(tasks={TASK: {**figures["bfloat16"], "float32": figures["float32"]}})
    for row in figures["bfloat16"]["differing"]:
        margins = [f"{row[name]['margin']:.3f}" for name in ("ours", "lm_eval")]
        print(f"bfloat16: question {row['item']} differs, ahead by {margins} nats")
    fast = [
        (found["speedup"] >= SPEEDUP, f"at least {SPEEDUP:g} times the items per second in {dtype}", found["speedup"])
        for dtype, found in figures.items()
    ]
    same = {dtype: f"{found['agreement']:.4f} of {found['items']}" for dtype, found in figures.items()}
    return record.finish(
        [
            (record.raw["packed"], "our scorer packs a question and its choices into one row", "True"),
            *((held, claim, f"{speedup:.2f}") for held, claim, speedup in fast),
            (figures["float32"]["agreement"] == 1.0, "the same answer to every question in float32", same["float32"]),
            (True, "the same answers in bfloat16, where both round: shown", same["bfloat16"]),
        ]
    )


def measure(dtype: str, record: Record) -> list[dict[str, Any]]:
    """Answers and seconds of both models, chunk by chunk, from the last chunk that was kept."""
    chunks: list[dict[str, Any]] = record.raw.get("chunks", {}).get(dtype, [])
    items, batch_size, chunk_items = (record.raw["settings"][key] for key in ("items", "batch_size", "chunk_items"))
    starts = range(0, items, chunk_items)
    if len(chunks) == len(starts):
        return chunks
    models = load_both(base_model(record.smoke), batch_size, dtype)
    record.save(packed=record.raw.get("packed", True) and models["ours"].packs)
    task, doc_count = load_task(record.smoke)
    for lm in models.values():  # kernels are built and cached; on questions that are not measured
        answer(lm, task, range(items, min(items + batch_size, doc_count)))
    for number, start in list(enumerate(starts))[len(chunks) :]:
        chunk: dict[str, Any] = {"first": start}
        for name in ("ours", "lm_eval") if number % 2 == 0 else ("lm_eval", "ours"):
            indices = range(start, min(start + chunk_items, items))
            chunk[name], chunk[f"seconds_{name}"] = answer(models[name], task, indices)
        chunks.append(chunk)
        record.save(chunks={**record.raw.get("chunks", {}), dtype: chunks})
        print(f"{dtype}: {start + len(chunk['ours'])} of {items} questions", file=sys.stderr, flush=True)
    return chunks


def base_model(smoke: bool) -> BaseModelSection:
    base = load_recipe(QUICKSTART).base_model
    if not smoke:
        return base
    texts = [row[key] for row in sample_rows(TASK) for key in ("question", "options")]
    return base.model_copy(update={"path": str(tiny_base(texts)), "sha256": None})


def load_both(base: BaseModelSection, batch_size: int, dtype: str) -> dict[str, Any]:
    import torch
    from lm_eval.models.huggingface import HFLM

    from sllm_tune.answer.local import PackedLM

    path = find_base(base, QUICKSTART.parent)
    model: Any = load_model(path, base).to(getattr(torch, dtype))
    ours = PackedLM(model, load_tokenizer(path, base), batch_size, chat_template=base.chat_template)
    theirs = HFLM(path, device="cpu", dtype=dtype, softmax_dtype="float32", batch_size=batch_size)
    return {"ours": ours, "lm_eval": theirs}


def load_task(smoke: bool) -> tuple[Any, int]:
    rows = task_rows(TASK, HERE, smoke=smoke)
    return build_over(find_task(TASK, HERE), rows), len(rows)


def answer(lm: Any, task: Any, indices: range) -> tuple[list[list[float]], float]:
    """Each item's log-probabilities in nats, one a choice, and the seconds the model took for them all."""
    task.build_all_requests(samples=list(indices), apply_chat_template=True, chat_template=lm.apply_chat_template)
    started = time.monotonic()
    scored = lm.loglikelihood(task.instances, disable_tqdm=True)
    seconds = time.monotonic() - started
    pairs = zip(task.instances, scored, strict=True)
    return [[value for _, (value, _) in group] for _, group in groupby(pairs, lambda p: p[0].doc_id)], seconds


def compare(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = {name: sum(chunk[f"seconds_{name}"] for chunk in chunks) for name in ("ours", "lm_eval")}
    pairs = [pair for chunk in chunks for pair in zip(chunk["ours"], chunk["lm_eval"], strict=True)]
    both = [{"item": i, "ours": read(ours), "lm_eval": read(theirs)} for i, (ours, theirs) in enumerate(pairs)]
    differing = [row for row in both if row["ours"]["answer"] != row["lm_eval"]["answer"]]
    return {
        "speedup": seconds["lm_eval"] / seconds["ours"],
        "agreement": 1 - len(differing) / len(both),
        "items": len(both),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "largest_difference_nats": max(abs(a - b) for pair in pairs for a, b in zip(*pair, strict=True)),
        "differing": differing,
    }


def read(nats: list[float]) -> dict[str, Any]:
    """The answer, and by how many nats it is ahead of the next."""
    first, second = sorted(nats, reverse=True)[:2]
    return {"answer": nats.index(first), "margin": first - second, "log_probabilities": nats}


if __name__ == "__main__":
    sys.exit(main())
