"""Serve: one base and several specialists of it, each by its name, in an engine that this only starts.

The engine is vLLM where it and a CUDA device are there, else llama.cpp. What it serves is what was measured: the files
of an export that was held against the scores, the chat template and the end of an answer of the merged checkpoint.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

from sllm_tune.deliver.front import Plan, bound, command
from sllm_tune.deliver.gguf_model import to_gguf
from sllm_tune.deliver.gguf_vocabulary import stop_token
from sllm_tune.deliver.half_made import half_made
from sllm_tune.deliver.refusals import read_results
from sllm_tune.deliver.vllm_server import vllm_command
from sllm_tune.errors import BadInput, ModelError
from sllm_tune.model.find import Base
from sllm_tune.model.lineage import base_sha256, lineage_of
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.runs.files import sha256, write_json
from sllm_tune.sources import cache_dir
from sllm_tune.wording import hint, listed, shown

ENGINES = ("vllm", "llama.cpp")
BASE = "base"  # what every base is also called
RESIZED = "../model"  # what a run's own base is called in its adapter
_NAME = r"[a-z0-9][a-z0-9._-]*"
TEMPLATE, TOKENIZER, ENDS = "chat_template.jinja", "tokenizer.json", "generation_config.json"


class LoraRanks(TypedDict):
    """What `adapter_config.json` says of ranks: of all layers, and of those that have another."""

    r: int
    rank_pattern: dict[str, int] | None


@dataclass(frozen=True)
class Specialist:
    """A finished run, as it is served."""

    dir: Path
    name: str
    base: str
    base_sha256: str
    rank: int
    alike: dict[str, str]
    """What all that are served together must have in common besides the base: the content, by what it is called."""


def serve(
    run_dirs: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    base: Path | None = None,
    out: Path | None = None,
    context: int = 4096,
    engine: str | None = None,
) -> None:
    """Become the server of some runs' specialists and of their base; returns only by an error.

    Args:
        run_dirs: Run folders, finished to their scores, of one base.
        host: Address to listen on; there is no password, so any but the loopback lets others ask as well.
        port: Port to listen on.
        base: Folder of the base, where it is not where the recipe has it.
        out: Where adapters are exported to for llama.cpp; None is each run's `export/`.
        context: Most tokens of a prompt with its answer.
        engine: One of `ENGINES`; None is vLLM where it and a CUDA device are there.

    Raises:
        BadInput: a run is not finished, the runs are not of one base, two have one name, or the address cannot be had.
        JobFailed: an export does not answer as what was scored, or the disk has no room.
    """
    if engine not in (None, *ENGINES):
        raise BadInput(f"--engine: no {engine!r}; there are {listed(ENGINES, 'and')}{hint(str(engine), ENGINES)}")
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise BadInput("--engine vllm: vllm is not installed.\n  Install it with: pip install vllm")
    if context < 1:
        raise BadInput(f"--context: {context} tokens are none.")
    specialists = read_specialists(run_dirs)
    names = base_names(specialists)
    folder = base_folder(specialists[0], base)
    if (engine or ("vllm" if _has_vllm() else "llama.cpp")) == "vllm":
        command = vllm_command(
            folder,
            names,
            {one.name: one.dir.absolute() / "adapter" for one in specialists},
            max(one.rank for one in specialists),
            specialists[0].dir.absolute() / "merged",
            host=host,
            port=port,
            context=context,
        )
        os.environ |= {"VLLM_NO_USAGE_STATS": "1"}
    else:
        command = _llama_command(specialists, names, folder, out, host, port, context)
    sys.stdout.flush()
    os.execv(command[0], command)


def read_specialists(run_dirs: Sequence[Path]) -> list[Specialist]:
    """The runs, where they can be served together.

    Raises:
        BadInput: a run is not finished, two have one name, or they differ in what one server has once for all.
    """
    found = [_read(folder) for folder in run_dirs]
    for one, other in itertools.combinations(found, 2):
        if one.name == other.name:
            raise BadInput(
                f"{one.dir} and {other.dir}: both are called {one.name}, by which a request names its model.\n"
                "  Serve one of them, or give one another name in its recipe and run it again."
            )
        if one.base_sha256 != other.base_sha256:
            raise BadInput(
                f"{one.dir} and {other.dir}: specialists of two bases, {_of(one)} and {_of(other)}.\n"
                "  One server has one base; serve them apart, each with its own --port."
            )
        if differing := [what for what in one.alike if one.alike[what] != other.alike[what]]:
            raise BadInput(
                f"{one.dir} and {other.dir}: they differ in {differing[0]}, of which one server has one.\n"
                "  Serve them apart, each with its own --port."
            )
    return found


def base_names(specialists: Sequence[Specialist]) -> list[str]:
    """What the base is called: its public name, where it is not a run's own, and `base`.

    Raises:
        BadInput: a specialist is called so as well.
    """
    public = specialists[0].base
    names = [f"{specialists[0].name}-{BASE}" if public == RESIZED else public, BASE]
    for one in specialists:
        if one.name in names:
            raise BadInput(
                f"{one.dir}: it is called {one.name}, as the base is.\n"
                "  Give it another name in its recipe and run it again."
            )
    return names


def base_folder(specialist: Specialist, given: Path | None) -> Path:
    """The checkpoint that the adapters were trained on.

    Raises:
        BadInput: it is not there, or another.
    """
    own = specialist.dir / "model"
    try:
        if given is None and specialist.base == RESIZED:
            found = own
        elif given is None:
            section = BaseModelSection.model_validate(_read_json(specialist.dir / "recipe.json")["base_model"])
            found = Base(section=section, folder=Path.cwd()).checkpoint
        else:
            found = given
        got = base_sha256(str(found), None)
    except (ModelError, KeyError, TypeError, ValueError, OSError) as error:
        raise BadInput(
            f"{specialist.dir}: its base, {_of(specialist)}, is not found ({str(error).splitlines()[0]:.200}).\n"
            "  Name its folder with --base."
        ) from error
    if got != specialist.base_sha256:
        raise BadInput(f"{found}: not the base of {specialist.dir}, {_of(specialist)}; its content hash is {got[:16]}.")
    return found.absolute()


def _read(folder: Path) -> Specialist:
    results = read_results(folder)
    merged, config = folder / "merged", folder / "adapter" / "adapter_config.json"
    needed = [config, *(merged / name for name in (TOKENIZER, ENDS))]
    if missing := [file for file in needed if not file.exists()]:
        raise BadInput(
            f"{folder}: no {missing[0].relative_to(folder)} in it, so this run is not finished.\n"
            "  Finish it with: sllm-tune run RECIPE"
        )
    if not re.fullmatch(_NAME, name := str(results["name"])):  # a file is called so
        raise BadInput(f"{folder / 'scores' / 'results.json'}: {shown(name)} is no name of a recipe.")
    lineage = lineage_of(folder / "adapter")
    if not lineage:
        raise BadInput(f"{folder}: its adapter does not say what base it was trained on.\n  Train again.")
    ranks, ends = cast(LoraRanks, _read_json(config)), _read_json(merged / ENDS)
    template = merged / TEMPLATE
    return Specialist(
        dir=folder,
        name=name,
        base=lineage["base"],
        base_sha256=lineage["base_sha256"],
        rank=max([int(ranks["r"]), *map(int, (ranks.get("rank_pattern") or {}).values())]),
        alike={
            "the tokenizer": sha256(merged / TOKENIZER),
            "the chat template": sha256(template) if template.exists() else "",
            "the token that ends an answer": json.dumps(ends.get("eos_token_id")),
        },
    )


def _of(specialist: Specialist) -> str:
    return f"{specialist.base} ({specialist.base_sha256[:16]})"


def _read_json(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file}: cannot be read ({error!r:.100}).\n  Run the recipe again.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file}: it holds no JSON object.\n  Run the recipe again.")
    return found


def _has_vllm() -> bool:
    if importlib.util.find_spec("vllm") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _llama_command(
    specialists: Sequence[Specialist],
    names: Sequence[str],
    base: Path,
    out: Path | None,
    host: str,
    port: int,
    context: int,
) -> list[str]:
    bound(host, port).close()  # an export can take minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is half made goes then
    beside = _base_gguf(specialists[0], base)
    adapters = {one.name: _adapter_gguf(one, base, beside, out or one.dir / "export") for one in specialists}
    return command(
        Plan(
            base=str(beside),
            adapters={names[0]: None, **{name: str(file.absolute()) for name, file in adapters.items()}},
            aliases={BASE: names[0]},
            host=host,
            port=port,
            context=context,
        )
    )


def _base_gguf(specialist: Specialist, base: Path) -> Path:
    """The base in float16 in the cache, made once; it ends answers where the specialists were taught to."""
    alike = json.dumps([specialist.base_sha256, specialist.alike])
    file = cache_dir() / "gguf" / f"{hashlib.sha256(alike.encode()).hexdigest()[:32]}-f16.gguf"
    record = file.with_suffix(".json")
    if file.exists() and record.exists() and _read_json(record).get("sha256") == sha256(file):
        return file
    print(f"serve: the base {specialist.base} as GGUF to {file}", file=sys.stderr, flush=True)
    file.unlink(missing_ok=True)
    with half_made(file) as scratch:
        to_gguf(base, scratch, specialist.base, stop_token(specialist.dir / "merged"))
        write_json(record, {"sha256": sha256(scratch)})
    return file


def _adapter_gguf(specialist: Specialist, base: Path, base_gguf: Path, out: Path) -> Path:
    """The adapter as an export, made where there is none.

    Raises:
        BadInput: what is there is not the export of this adapter.
    """
    from sllm_tune.deliver.export import export_adapter

    file = out / f"{specialist.name}-adapter-f16.gguf"
    if not file.exists():
        export_adapter(specialist.dir, base, base_gguf, file)
        return file
    record = file.with_suffix(".json")
    said = _read_json(record) if record.exists() else {}
    made_of = sha256(specialist.dir / "adapter" / "adapter_model.safetensors")
    if said.get("sha256") != sha256(file) or said.get("adapter_sha256") != made_of:
        raise BadInput(
            f"{file}: not the export of {specialist.dir / 'adapter'} as it is now.\n  Remove it, and it is made again."
        )
    return file
