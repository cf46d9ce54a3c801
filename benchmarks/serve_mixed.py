"""Does each of several specialists, and their base, answer as itself when 200 clients ask all of them at once?

Starts `sllm-tune serve` on finished runs of one base, asks every model every question alone, and then keeps 200
requests under way for two minutes, models and questions mixed. An answer is another model's if it is what one of the
others said alone to the same question and not what its own said; where a batch rounds otherwise, it may be nobody's.
Then the first run is served alone, for the memory of one adapter, and answers the same questions in transformers.

Acceptance: no answer of another model, the base's included; none lost; memory of all adapters at most 1.3 times that of
one; SIGTERM ends the server with status 0.
Budget: 10 minutes for three quickstarts on two cores. Cut short, it starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import Record, finished_run, parse, parser

QUESTIONS, TOKENS = 10, 24
CLIENTS, SECONDS = 200, 120.0
MEMORY = 1.3


def main() -> int:
    options = parser("serve_mixed", __doc__)
    default = [Path(f"runs/{domain}-quickstart") for domain in ("legal", "medical", "finance")]
    options.add_argument("--run-dirs", type=Path, nargs="+", default=default, help="default: the three quickstarts")
    options.add_argument("--run-dir", type=Path, default=default[0], help="of a smoke run, which has one")
    given = parse(options)
    runs = [finished_run(options, given)] if given.smoke else given.run_dirs
    seconds, clients = (2.0, 20) if given.smoke else (SECONDS, CLIENTS)
    record = Record(given, {"runs": [run.name for run in runs], "clients": clients, "seconds": seconds})
    with served(runs, given.work / "mixed.log") as server:
        models = asyncio.run(names(server))
        mixed = asyncio.run(load(server, models, questions(runs), seconds, clients))
        mixed["memory_bytes"] = server.memory_bytes()
        mixed["exit_status"] = server.stop()
    with served(runs[:1], given.work / "alone.log") as server:
        alone = asyncio.run(load(server, models[:2], questions(runs), seconds / 6, clients))
        alone["memory_bytes"] = server.memory_bytes()
    plain = transformers_tokens_per_s(runs[0], questions(runs))
    record.save(models=models, mixed=mixed, alone=alone, transformers_tokens_per_s=plain)
    ratio = mixed["memory_bytes"] / alone["memory_bytes"]
    speed = f"{mixed['tokens_per_s']:.0f} tokens/s, one after the other in transformers {plain:.0f}"
    told = f"{mixed['answers']:,} answers of {len(models)} models, {mixed['nobodys']} rounded otherwise"
    return record.finish(
        [
            (mixed["others"] == 0, "no answer of another model", f"{mixed['others']} of {told}"),
            (mixed["lost"] == 0, "none lost", f"{mixed['lost']} lost; {speed}"),
            (ratio <= MEMORY, f"memory of all adapters at most {MEMORY} times one's", f"{ratio:.2f} times"),
            (mixed["exit_status"] == 0, "SIGTERM ends it with status 0", f"{mixed['exit_status']}"),
        ]
    )


def questions(runs: Sequence[Path]) -> list[str]:
    """Prompts that were graded, some of each run."""
    from pyarrow.parquet import read_table

    of_run = [
        read_table(next((run / "tasks").glob("*/test.parquet"))).column("prompt").to_pylist()[:QUESTIONS]
        for run in runs
    ]
    return [one for together in zip(*of_run, strict=True) for one in together][:QUESTIONS]


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    url: str

    def memory_bytes(self) -> int:
        """Of the server and its engines; pages that they share are counted once."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(one.memory_full_info().pss for one in family)

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def served(runs: Sequence[Path], log: Path) -> Generator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sllm_tune", "serve", *map(str, runs), "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written)
    try:
        while "/v1" not in log.read_text(encoding="utf-8"):
            if process.poll() is not None:
                raise RuntimeError(log.read_text(encoding="utf-8")[-2000:])
            time.sleep(0.2)
        yield Server(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def session() -> Any:
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=600))


async def names(server: Server) -> list[str]:
    """Of the models, the base first."""
    async with session() as client, client.get(f"{server.url}/v1/models") as answer:
        return [one["id"] for one in (await answer.json())["data"]]


async def load(
    server: Server, models: Sequence[str], asked: Sequence[str], seconds: float, clients: int
) -> dict[str, Any]:
    """Every model asked alone, and then all together for so long."""
    counts = {"answers": 0, "others": 0, "nobodys": 0, "lost": 0, "tokens": 0}
    drawn = random.Random(0)
    async with session() as client:

        async def ask(model: str, question: str) -> tuple[str, int] | None:
            messages = [{"role": "user", "content": question}]
            body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
            async with client.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    return None
                made = await answer.json()
                return made["choices"][0]["message"]["content"], made["usage"]["completion_tokens"]

        alone = {key: ((await ask(*key)) or ("", 0))[0] for key in itertools.product(models, asked)}
        end = time.monotonic() + seconds

        async def keep_asking() -> None:
            while time.monotonic() < end:
                model, question = drawn.choice(models), drawn.choice(asked)
                found = await ask(model, question)
                if found is None:
                    counts["lost"] += 1
                    continue
                text, tokens = found
                others = {alone[other, question] for other in models if other != model}
                is_own = text == alone[model, question]
                counts["answers"] += 1
                counts["tokens"] += tokens
                counts["others"] += not is_own and text in others
                counts["nobodys"] += not is_own and text not in others

        started = time.monotonic()
        await asyncio.gather(*(keep_asking() for _ in range(clients)))
    distinct = sum(len({alone[model, one] for model in models}) for one in asked) / (len(asked) * len(models))
    took = time.monotonic() - started
    return {**counts, "seconds": took, "tokens_per_s": counts["tokens"] / took, "distinct_answers": distinct}


def transformers_tokens_per_s(run: Path, asked: Sequence[str]) -> float:
    """Of the merged model, one question after the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "merged")
    made, started = 0, time.monotonic()
    for question in asked:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        answer = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        made += answer.shape[1] - inputs["input_ids"].shape[1]
    return made / (time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
