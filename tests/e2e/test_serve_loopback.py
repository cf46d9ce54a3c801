"""`sllm-tune serve` as a client meets it: three specialists and their base behind one address, by llama.cpp."""

import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from exported import finished_run, section

pytest.importorskip("aiohttp")
pytest.importorskip("cyllama")
pytest.importorskip("xllamacpp")

from aiohttp import ClientSession, ClientTimeout, TCPConnector

NAMES = ["law", "health", "money"]
QUESTIONS = [f"Section {n % 7}: may the tenant give notice in {n} days? 임차인 {n}?" for n in range(12)]
TOKENS = 16
SECRET = "Bearer sk-of-a-client"


@dataclass
class Server:
    """A server that runs."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    async def ask(self, client: ClientSession, model: object, question: str, **options: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "max_tokens": TOKENS, **options}
        async with client.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            return answer.status, await answer.json()

    async def text(self, client: ClientSession, model: str, question: str) -> str:
        status, made = await self.ask(client, model, question)
        assert status == 200, made
        assert made["model"] == ("tiny" if model == "base" else model)
        return made["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    return [
        finished_run(tmp_path_factory.mktemp(name), tiny_base, name=name, seed=n) for n, name in enumerate(NAMES, 1)
    ]


@pytest.fixture(scope="module")
def server(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(runs, tmp_path_factory.mktemp("server")) as found:
        yield found


@contextlib.contextmanager
def started(runs: list[Path], folder: Path) -> Generator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sllm_tune", "serve", *map(str, runs), "--port", str(port), "--context", "512"]
    log = folder / "log"
    one_core = {min(os.sched_getaffinity(0))}  # threads of llama.cpp that have to share one wait for each other
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, stdout=written, stderr=written, preexec_fn=lambda: os.sched_setaffinity(0, one_core)
        )
    try:
        server = Server(process, f"http://127.0.0.1:{port}", log)
        until = time.monotonic() + 240
        while "/v1" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


def client(**options: Any) -> ClientSession:
    return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=240), **options)


def test_models_are_listed_and_an_unknown_one_is_not_found(server: Server):
    async def ask() -> None:
        async with client() as session:
            async with session.get(f"{server.url}/v1/models") as answer:
                assert [one["id"] for one in (await answer.json())["data"]] == ["tiny", *NAMES]
            async with session.get(f"{server.url}/v1/models/law") as answer:
                assert (await answer.json())["id"] == "law"
            async with session.get(f"{server.url}/health") as answer:
                assert answer.status == 200
            status, made = await server.ask(session, "lawyer", "?")
            assert (status, made["error"]["code"]) == (404, "model_not_found")
            assert made["error"]["message"] == "The model 'lawyer' does not exist; there are tiny, law, health, money."

    asyncio.run(ask())


def test_a_request_that_cannot_be_answered_gets_an_error_in_the_form_of_openai(server: Server):
    async def ask() -> None:
        async with client() as session:
            for body, status, says in [
                (b"[]", 400, "must be a JSON object"),
                (b"[" * 100_000, 400, "must be a JSON object"),
                (b"{}", 400, "must name a model"),
                (b'{"model": ["law"]}', 400, "must name a model"),
                (b'{"model": "law", "lora": [{"id": 0, "scale": 0}], "prompt": "?"}', 400, "lora: not taken here"),
                (b'{"model": "law", "prompt": "%s"}' % (b"a" * (1 << 20)), 413, "Too Large"),
                (b'{"model": "law"}', 400, "prompt"),
                (b'{"model": "law", "prompt": "%s"}' % (b"a b " * 600), 400, "exceed"),
            ]:
                async with session.post(f"{server.url}/v1/completions", data=io.BytesIO(body)) as answer:
                    assert (answer.status, says in (await answer.json())["error"]["message"]) == (status, True), says
            async with session.get(f"{server.url}/props") as answer:  # llama.cpp's own pages stay inside
                assert answer.status == 404

    asyncio.run(ask())


def test_a_stream_brings_the_same_answer_in_parts(server: Server):
    async def ask() -> None:
        async with client() as session:
            whole = await server.text(session, "law", QUESTIONS[0])
            messages = [{"role": "user", "content": QUESTIONS[0]}]
            body = {"model": "law", "messages": messages, "max_tokens": TOKENS, "stream": True}
            async with session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                assert answer.content_type == "text/event-stream"
                lines = [line.decode().strip() async for line in answer.content]
            told = [line.removeprefix("data: ") for line in lines if line]
            assert told.pop() == "[DONE]"
            parts = [json.loads(one)["choices"][0]["delta"].get("content") or "" for one in told]
            assert "".join(parts) == whole
            assert len([part for part in parts if part]) > 1

    asyncio.run(ask())


@torch.no_grad()
def test_each_token_of_a_served_answer_is_the_most_likely_one_by_transformers(
    server: Server, runs: list[Path], tiny_base: Path
):
    from sllm_tune.model.load import load_model, load_tokenizer

    async def served(name: str, question: str) -> list[int]:
        async with client() as session:
            _, made = await server.ask(session, name, question, logprobs=True)
        told = made["choices"][0]["logprobs"]["content"]  # of tokens that make one character, only the last
        whole = itertools.takewhile(lambda one: "\ufffd" not in bytes(one["bytes"]).decode(errors="replace"), told)
        return [one["id"] for one in whole]

    compared = 0
    for name, checkpoint in [("tiny", tiny_base), *zip(NAMES, (run / "merged" for run in runs), strict=True)]:
        model: Any = load_model(str(checkpoint), section(checkpoint), dtype=torch.float32)
        tokenizer: Any = load_tokenizer(str(checkpoint), section(checkpoint))
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            answer = asyncio.run(served(name, question))
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            behind = logits.max(-1).values - logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
            assert all(behind < 0.1)  # nats: a near tie, which float16 may decide otherwise
            compared += len(answer)
    assert compared > 80


def test_a_served_answer_ends_where_it_was_taught_to(server: Server, runs: list[Path]):
    taught = json.loads((runs[0] / "merged" / "generation_config.json").read_text())["eos_token_id"]
    first = taught[0] if isinstance(taught, list) else taught

    async def ask() -> None:
        async with client() as session:
            for name in ("base", *NAMES):
                _, made = await server.ask(session, name, QUESTIONS[0], logit_bias=[[first, 1e6]])
                assert made["choices"][0]["finish_reason"] == "stop"
                assert made["choices"][0]["message"]["content"] == ""

    asyncio.run(ask())


def test_no_request_among_many_gets_another_models_answer_and_none_is_lost(server: Server):
    async def ask() -> None:
        models = ["base", *NAMES]
        async with client() as session:
            alone = {(name, q): await server.text(session, name, q) for name in models for q in QUESTIONS}
            assert len(set(alone.values())) == len(alone)  # so another's answer is seen
            asked = random.Random(0).choices(list(alone), k=600)
            places = asyncio.Semaphore(60)

            async def one(key: tuple[str, str]) -> bool:
                async with places:
                    return await server.text(session, *key) == alone[key]

            assert all(await asyncio.gather(*map(one, asked)))

    asyncio.run(ask())


def test_who_hangs_up_leaves_the_place_to_the_next(server: Server):
    async def ask() -> None:
        async with client() as session:
            before = await server.text(session, "law", QUESTIONS[1])

            async def hang_up() -> None:
                long = {"max_tokens": 400, "logit_bias": [[0, False]], "stream": True}
                await asyncio.wait_for(server.ask(session, "law", QUESTIONS[2], **long), 0.05)

            left = await asyncio.gather(*(hang_up() for _ in range(30)), return_exceptions=True)
            assert any(isinstance(one, asyncio.TimeoutError) for one in left)
            assert await server.text(session, "law", QUESTIONS[1]) == before

    asyncio.run(ask())


def test_neither_what_is_asked_nor_a_key_is_in_the_log(server: Server):
    async def ask() -> None:
        async with client(headers={"Authorization": SECRET}) as session:
            await server.text(session, "law", "a question of nobody else's")

    asyncio.run(ask())
    log = server.log.read_text()
    assert "/v1/chat/completions law 200" in log
    for hidden in ("nobody else", "sk-of-a-client", "tenant"):
        assert hidden not in log


def test_the_end_of_the_process_is_clean_and_leaves_nothing(runs: list[Path], tmp_path: Path):
    with started(runs, tmp_path) as server:

        async def ask() -> list[Any]:
            async with client() as session:
                asked = [asyncio.create_task(server.text(session, "law", one)) for one in QUESTIONS]
                await asyncio.sleep(0.05)
                server.process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        below = psutil.Process(server.process.pid).children(recursive=True)
        answers = asyncio.run(ask())
        assert server.process.wait(30) == 0
        assert all(isinstance(one, str) for one in answers)  # those under way were finished
        assert not [one for one in below if one.is_running()]
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(server.url[-5:]))):
            pass


def test_an_export_of_another_adapter_is_not_served(server: Server, runs: list[Path], tmp_path: Path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    shutil.copyfile(runs[1] / "adapter" / "adapter_model.safetensors", run / "adapter" / "adapter_model.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "sllm_tune", "serve", str(run), "--port", "0"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "law-adapter-f16.gguf: not the export of" in done.stderr
