"""llama.cpp's own server in this process: it applies the chat template and the adapter that a file brings."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from sllm_tune.deliver.engine import Branches, LlamaFile, beginnings, need
from sllm_tune.errors import JobFailed, ModelError
from sllm_tune.tasks.encode import Encoder

ANSWER_SECONDS = 120.0
MOST_LIKELY = 256  # tokens


class Server(Protocol):
    """llama.cpp's server; as long as it lives, it runs."""

    listening_address: str


class Likely(TypedDict):
    """A token and its log-probability in nats."""

    id: int
    logprob: float


class Written(TypedDict):
    """A token that was written, and those most likely in its place."""

    top_logprobs: list[Likely]


class Reply(TypedDict):
    """What the server answers: each path has one of these."""

    tokens: list[int]
    prompt: str
    completion_probabilities: list[Written]


class Served:
    """A file in llama.cpp's server, on a free port of the loopback interface. Made by `serve`."""

    def __init__(self, server: Server, vocabulary: int) -> None:
        self._server = server
        self._address = str(server.listening_address)
        self._vocabulary = vocabulary
        # It says no probabilities beside the end of an answer or a part of a character. A bias has it write this token
        # instead, whatever the model would; the probabilities are those before the bias.
        self._written = int(self.ask("/tokenize", {"content": "a"})["tokens"][-1])

    def ask(self, path: str, body: Mapping[str, object]) -> Reply:
        """What the server answers.

        Raises:
            JobFailed: it refuses; the message is its own.
        """
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._address}{path}", json.dumps(body).encode(), headers)
        try:
            with _direct().open(request, timeout=ANSWER_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise JobFailed(f"llama.cpp's server: {error.read().decode(errors='replace')[:300]}") from error

    def render(self, messages: list[dict[str, str]], options: Mapping[str, object]) -> str:
        """A conversation through the file's own chat template; `options` are given to the template."""
        return str(self.ask("/apply-template", {"messages": messages, **options})["prompt"])

    def next_log_probabilities(self, ids: Sequence[int], wanted: Sequence[int] = ()) -> NDArray[np.float32]:
        """As `Engine`. The server writes a whole vocabulary out as text, so it is asked for that only where needed."""
        made = self._next(ids, min(MOST_LIKELY, self._vocabulary))
        return made if np.isfinite(made[list(wanted)]).all() else self._next(ids, self._vocabulary)

    def _next(self, ids: Sequence[int], most_likely: int) -> NDArray[np.float32]:
        body: dict[str, object] = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": most_likely,
            "temperature": 0,
            "cache_prompt": True,
        }
        body["logit_bias"] = [[self._written, 1e6]]
        (first,) = self.ask("/completion", body)["completion_probabilities"]
        made = np.full(self._vocabulary, -np.inf, dtype=np.float32)
        for one in first["top_logprobs"]:
            made[one["id"]] = one["logprob"]
        return made

    def branch_log_probabilities(self, context: Sequence[int], answers: Sequence[Sequence[int]]) -> Branches:
        """As `Engine`."""
        wanted: dict[tuple[int, ...], list[int]] = {one: [] for one in beginnings(answers)}
        for answer in answers:
            for i, token in enumerate(answer):
                wanted[tuple(answer[:i])].append(token)
        return {one: self.next_log_probabilities([*context, *one], tokens) for one, tokens in wanted.items()}


class WithAdapter:
    """An `Engine`: a base's file for its tokens, and llama.cpp's server, which has the adapter on it, for the rest."""

    def __init__(self, base: LlamaFile, served: Served) -> None:
        self.encode, self.decode, self.ends, self.stop = base.encode, base.decode, base.ends, base.stop
        self.next_log_probabilities = served.next_log_probabilities
        self.branch_log_probabilities = served.branch_log_probabilities


class ServedEncoder(Encoder):
    """An encoder whose chat template is the file's own, applied by llama.cpp."""

    served: Served

    def _apply(self, messages: list[dict[str, str]], **options: object) -> str:
        return self.served.render(messages, _for_server(options))


def _for_server(options: Mapping[str, object]) -> dict[str, object]:
    """Transformers' options of a template as the server takes them."""
    own = {key: value for key, value in options.items() if key == "add_generation_prompt"}
    given = {key: value for key, value in options.items() if key not in (*own, "continue_final_message")}
    return {"add_generation_prompt": False, **own, **({"chat_template_kwargs": given} if given else {})}


@contextlib.contextmanager
def serve(path: Path, *, threads: int, window: int, vocabulary: int, adapter: Path | None = None) -> Generator[Served]:
    """The file in llama.cpp's server while the block runs.

    Raises:
        BadInput: the extra is missing. ModelError: the server cannot load the file or the adapter.
    """
    llama = need("xllamacpp")
    settings = llama.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = window, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    # An answered conversation is shown as it is, not to be gone on with.
    settings.use_jinja, settings.prefill_assistant, settings.warmup, settings.verbosity = True, False, False, -1
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    if adapter is not None:
        settings.lora_adapters = [llama.CommonAdapterLoraInfo(str(adapter), 1.0)]
    try:
        server = llama.Server(settings)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: llama.cpp's server cannot load it ({error}).") from error
    try:
        yield Served(server, vocabulary)
    finally:
        del server


def _direct() -> urllib.request.OpenerDirector:
    """Without the proxy that the environment may name: it is this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
