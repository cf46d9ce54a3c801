"""Export: a finished run's specialist as files that others load, each kept only if it answers as what was scored."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from sllm_tune.answer.items import Graded, samples_path
from sllm_tune.deliver.answers import EngineLM
from sllm_tune.deliver.engine import Engine, LlamaFile, need
from sllm_tune.deliver.folders import write_adapter, write_merged
from sllm_tune.deliver.gguf_adapter import adapter_to_gguf
from sllm_tune.deliver.gguf_model import to_gguf
from sllm_tune.deliver.gguf_vocabulary import stop_token
from sllm_tune.deliver.half_made import folder_beside
from sllm_tune.deliver.openvino_engine import OpenVinoFile
from sllm_tune.deliver.openvino_model import to_openvino
from sllm_tune.deliver.parity import BARS, Parity, choose, parity, stop_refusals
from sllm_tune.deliver.quantize import KINDS, importance_of, quantize
from sllm_tune.deliver.refusals import read_results
from sllm_tune.deliver.served import ServedEncoder, WithAdapter, serve
from sllm_tune.deliver.shown import in_a_line, show_in_report
from sllm_tune.deliver.speed import measure
from sllm_tune.errors import BadInput
from sllm_tune.evaluate.exported import Exported, Speed
from sllm_tune.model.lineage import require_same_base
from sllm_tune.model.load import load_tokenizer
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.rows.read import Row
from sllm_tune.runs.files import read_jsonl, sha256
from sllm_tune.tasks.build import build, read_resolved
from sllm_tune.tasks.encode import Encoder
from sllm_tune.tasks.example import prompt_of
from sllm_tune.wording import hint, listed

Format = Literal["merged", "adapter", "gguf", "adapter-gguf", "openvino"]
WEIGHED = ("Q5_K_M", "Q4_K_M")  # kinds whose scales an importance matrix moves
IMPORTANCE_ROWS = 512
ROOM_FOR_ANSWERS = 2048  # tokens beside the longest prompt


class Finished(NamedTuple):
    """What an export needs of a finished run."""

    dir: Path
    name: str
    chat_template: bool
    tasks: list[Graded]
    samples: dict[str, list[Row]]
    intervals: dict[str, tuple[float, float]]


def export(
    run_dir: Path,
    format: Format,
    out: Path,
    *,
    quantize: str = "f16",
    base: Path | None = None,
    threads: int | None = None,
) -> Path:
    """Write a finished run's specialist to the folder `out`.

    A GGUF file gets a JSON file of its name beside it: how it answers next to what was scored, its size, speed and
    memory here.

    Args:
        run_dir: A run folder with `merged/`, `adapter/` and `scores/`.
        format: `merged` and `adapter` are folders of safetensors, `gguf` one file, `adapter-gguf` two: adapter, base;
            `openvino` a folder for Intel processors.
        out: The folder; what is in it stays.
        quantize: Of a GGUF file: `f16`, `Q8_0`, `Q5_K_M` or `Q4_K_M`.
        base: Folder of what the adapter was trained on, for the adapter's formats; None where the adapter names a hub
            id, or for `merged` and `gguf`.
        threads: Of the CPU for the engine; None is all.

    Returns:
        The file or folder that was made.

    Raises:
        BadInput: the run is not finished, something is at that place already, or an extra, `export` or `openvino`, is
            missing.
        ModelError: the engine cannot read such a model.
        JobFailed: the export does not answer as what was scored, or the disk has no room. Nothing is left of it.
    """
    _require_known(format, quantize)
    if format == "merged":
        _require(run_dir, "merged")
        write_merged(run_dir / "merged", out / "merged")
        return out / "merged"
    if format == "adapter":
        _require(run_dir, "merged", "adapter")
        write_adapter(run_dir / "adapter", run_dir / "merged", out / "adapter", base)
        return out / "adapter"
    threads = threads or os.cpu_count() or 1
    if format == "openvino":
        need("openvino", "openvino")
        run = read_finished(run_dir)
        return _openvino(run, out / f"{run.name}-openvino", threads)
    for module in ("cyllama.llama.llama_cpp", "xllamacpp"):
        need(module)
    run = read_finished(run_dir)
    if format == "gguf":
        return _gguf(run, quantize, out / f"{run.name}-{quantize}.gguf", threads)
    if base is None:
        raise BadInput("--format adapter-gguf: needs the folder of the base that the adapter was trained on.")
    return _adapter_gguf(run, base, out / f"{run.name}-adapter-f16.gguf", threads)


def _require_known(format: str, quantize: str) -> None:
    if format not in get_args(Format):
        raise BadInput(
            f"--format: {format!r} is none of {listed(get_args(Format), 'and')}{hint(format, get_args(Format))}"
        )
    if quantize not in BARS:
        raise BadInput(f"--quantize: {quantize!r} is none of {listed(BARS, 'and')}{hint(quantize, BARS)}")
    if format == "openvino" and quantize != "f16":
        raise BadInput(f"--quantize: {quantize} is a kind of GGUF; --format openvino is written in f16.")


def read_finished(run_dir: Path) -> Finished:
    """What an export is made of and compared with.

    Raises:
        BadInput: the run is not finished, or has no domain task whose items are kept in it.
    """
    _require(run_dir, "merged", "adapter", "scores", "scores/results.json", "recipe.json")
    results = read_results(run_dir)
    recipe = json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))
    domain = [name for name, task in results["tasks"].items() if task["kind"] == "domain"]
    files = {name: run_dir / "tasks" / f"{name}.yaml" for name in domain}
    if gone := [name for name, file in files.items() if not file.exists()]:
        raise BadInput(f"{run_dir}: the items of {listed(gone, 'and')} are not in it, so no export can be compared.")
    samples = {name: read_jsonl(samples_path(run_dir / "scores", name, "specialised")) for name in domain}
    tasks = [choose(name, build(read_resolved(files[name]), root=run_dir), samples[name]) for name in domain]
    low_high = {name: results["tasks"][name]["scores"]["specialised"]["ci95"] for name in domain}
    return Finished(
        dir=run_dir,
        name=re.sub(r"[^\w.-]+", "-", results["name"]),
        chat_template=recipe["base_model"]["chat_template"],
        tasks=tasks,
        samples=samples,
        intervals={name: (float(low), float(high)) for name, (low, high) in low_high.items()},
    )


def _require(run_dir: Path, *names: str) -> None:
    if missing := [name for name in names if not (run_dir / name).exists()]:
        raise BadInput(
            f"{run_dir}: no {missing[0]} in it, so this run is not finished.\n  Finish it with: sllm-tune run RECIPE"
        )


def _gguf(run: Finished, kind: str, out: Path, threads: int) -> Path:
    with folder_beside(out) as work:
        whole = work / "f16.gguf"
        to_gguf(run.dir / "merged", whole, run.name)
        made, weighed = whole, 0
        if kind in KINDS:
            made = work / "fewer.gguf"
            rows = _training_ids(run) if kind in WEIGHED else []
            weighed = len(rows)
            quantize(whole, kind, made, importance_of(run.dir / "merged", rows) if rows else None)
            whole.unlink()
        found = _compare(run, made, kind, threads)
        found = found.model_copy(update={"importance_rows": weighed, "sha256": sha256(made)})
        _keep(run, found, made, out)
    return out


def _adapter_gguf(run: Finished, base: Path, out: Path, threads: int) -> Path:
    require_same_base(run.dir / "adapter", str(base), None)
    with folder_beside(out) as work:
        beside, made = work / "base.gguf", work / "adapter.gguf"
        to_gguf(base, beside, f"{run.name} base", stop_token(run.dir / "merged"))  # the adapter was taught that one
        found = _adapter_over(run, base, beside, made, threads)
        os.replace(beside, out.with_name(f"{run.name}-base-f16.gguf"))
        _keep(run, found, made, out)
    return out


def export_adapter(run_dir: Path, base: Path, base_gguf: Path, out: Path) -> None:
    """Write a finished run's adapter as GGUF, for a file of its base that is there already, with its JSON file beside.

    Args:
        run_dir: As of `export`.
        base: Folder of what the adapter was trained on.
        base_gguf: The same as a file in float16, which ends answers where the run's specialist does.
        out: The file to make.

    Raises:
        BadInput, ModelError, JobFailed: as `export`.
    """
    for module in ("cyllama.llama.llama_cpp", "xllamacpp"):
        need(module)
    run = read_finished(run_dir)
    require_same_base(run.dir / "adapter", str(base), None)
    with folder_beside(out) as work:
        made = work / "adapter.gguf"
        found = _adapter_over(run, base, base_gguf, made, len(os.sched_getaffinity(0)))
        found.write(out.with_suffix(".json"))
        os.replace(made, out)


def _adapter_over(run: Finished, base: Path, base_gguf: Path, out: Path, threads: int) -> Exported:
    """Write the adapter; raises JobFailed where both do not answer as what was scored."""
    adapter_to_gguf(run.dir / "adapter", base, out)
    found = _compare(run, base_gguf, "f16", threads, out)
    made_of = sha256(run.dir / "adapter" / "adapter_model.safetensors")
    return found.model_copy(update={"sha256": sha256(out), "adapter_sha256": made_of})


def _openvino(run: Finished, out: Path, threads: int) -> Path:
    """Its prompts are rendered by the template in the folder, and everything else is OpenVINO's."""
    scored_by = _encoder(run)
    with folder_beside(out) as work:
        made = work / "openvino"
        to_openvino(run.dir / "merged", made)
        engine = OpenVinoFile(made, threads=threads)
        section = BaseModelSection(path=str(made), chat_template=run.chat_template)
        encoder = Encoder(load_tokenizer(str(made), section), chat_template=run.chat_template)
        told = f"export: openvino asks {sum(len(task.docs) for task in run.tasks)} items of the domain"
        print(told, file=sys.stderr, flush=True)
        found = parity(EngineLM(engine, encoder), scored_by, run.tasks, run.samples, run.intervals, BARS["f16"])
        Parity(found.tasks, [*stop_refusals(engine, scored_by), *found.refusals]).require()
        engine.close()
        exported = _exported(run, "openvino", "f16", found, measure(made, threads))
        _keep(run, exported.model_copy(update={"sha256": sha256(made / "openvino_model.bin")}), made, out)
    return out


def _exported(run: Finished, format: str, kind: str, found: Parity, speed: Speed) -> Exported:
    scored = sha256(run.dir / "scores" / "results.json")
    about = {"format": format, "kind": kind, "importance_rows": 0, "results_sha256": scored}
    return Exported.model_validate({**about, "tasks": found.tasks, "speed": speed})


def _keep(run: Finished, found: Exported, made: Path, out: Path) -> None:
    """Give the file its name, with the JSON file beside it, and tell of it here and in the run's report."""
    found.write(out.with_suffix(".json"))
    os.replace(made, out)
    print(f"export: {in_a_line(found)}", file=sys.stderr, flush=True)
    show_in_report(run.dir, found)


def _compare(run: Finished, gguf: Path, kind: str, threads: int, adapter: Path | None = None) -> Exported:
    """Ask a file the run's items and measure it.

    Raises:
        JobFailed: it does not answer as what was scored.
    """
    scored_by = _encoder(run)
    items = sum(len(task.docs) for task in run.tasks)
    print(f"export: {kind} asks {items} items of the domain", file=sys.stderr, flush=True)
    window = _longest(run, scored_by) + ROOM_FOR_ANSWERS
    file = LlamaFile(gguf, threads=threads, window=window)
    size = json.loads((run.dir / "merged" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with serve(gguf, threads=threads, window=window, vocabulary=size, adapter=adapter) as served:
        template = ServedEncoder(scored_by.tokenizer, chat_template=run.chat_template)
        template.served = served
        engine: Engine = WithAdapter(file, served) if adapter else file
        found = parity(EngineLM(engine, template), scored_by, run.tasks, run.samples, run.intervals, BARS[kind])
    found = Parity(found.tasks, [*stop_refusals(file, scored_by), *found.refusals])
    file.close()
    found.require()
    return _exported(run, "adapter-gguf" if adapter else "gguf", kind, found, measure(gguf, threads))


def _longest(run: Finished, encoder: Encoder) -> int:
    """Tokens of the longest prompt."""
    prompts = (prompt_of(task.built, doc, encoder.template) for task in run.tasks for doc in task.docs)
    return max(len(encoder.ids(prompt)) for prompt in prompts)


def _encoder(run: Finished) -> Encoder:
    """Of the checkpoint that was scored."""
    where = str(run.dir / "merged")
    tokenizer = load_tokenizer(where, BaseModelSection(path=where, chat_template=run.chat_template))
    return Encoder(tokenizer, chat_template=run.chat_template)


def _training_ids(run: Finished) -> list[list[int]]:
    """Token ids of training rows, spread over all of them, as the specialist was trained on them."""
    encoder = _encoder(run)
    rows: Sequence[Row] = read_jsonl(run.dir / "data" / "train.jsonl")
    spread = rows[:: max(1, len(rows) // IMPORTANCE_ROWS)][:IMPORTANCE_ROWS]
    return [encoder.supervise(row["context"], row["target"]).input_ids for row in spread]
