"""vLLM's server for one base and several adapters, as a command: it batches requests of different adapters together."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sllm_tune.errors import ModelError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for --max-lora-rank


def vllm_command(
    base: Path,
    names: Sequence[str],
    adapters: Mapping[str, Path],
    rank: int,
    measured: Path,
    *,
    host: str,
    port: int,
    context: int,
) -> list[str]:
    """The command that serves a base and its adapters by their names.

    vLLM's prefix cache stays on: it keeps what it has read by tokens and adapter, so none takes up another's.

    Args:
        base: Checkpoint that the adapters were trained on.
        names: Of the base.
        adapters: Folders of PEFT by the names of their models.
        rank: The highest of the adapters.
        measured: A merged checkpoint of one of them: the tokenizer, the chat template and the tokens that end an
            answer are taken from there, which are those that were measured.
        host: Address to listen on.
        port: Port to listen on.
        context: Most tokens of a prompt with its answer.

    Raises:
        ModelError: vLLM has no place for so high a rank.
    """
    room = next((one for one in RANKS if one >= rank), None)
    if room is None:
        raise ModelError(
            f"serve: an adapter has rank {rank}, and vLLM takes at most {RANKS[-1]}.\n"
            "  Serve its merged model: sllm-tune export RUN --format merged --out exported; vllm serve exported/merged"
        )
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(base)]
    command += ["--served-model-name", *names]
    command += ["--host", host, "--port", str(port), "--max-model-len", str(context)]
    command += ["--tokenizer", str(measured), "--generation-config", str(measured)]
    command += ["--override-generation-config", json.dumps({"temperature": 0.0})]
    command += ["--default-chat-template-kwargs", json.dumps({"enable_thinking": False})]
    command += ["--enable-prefix-caching", "--enable-lora"]
    command += ["--max-loras", str(len(adapters)), "--max-lora-rank", str(room)]
    return [*command, "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
