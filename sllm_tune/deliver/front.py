"""One address for several models of llama.cpp: a front that sends each request to the model it names.

llama.cpp's server takes an adapter with a request, and then answers wrongly: it keeps prompts that it has read by their
tokens alone (`--cache-ram`), so what one adapter made of a prompt is taken up by another (llama.cpp issue 26207); a
request that names no adapter gets all of them; and slots are gone through in a fixed order, so that one adapter's
requests make all others wait. Here each model is a server of its own, in one process: its context has one adapter from
its beginning to its end, and there is no other's work to take up. The base's weights are one mapped file, once in
memory for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass, field

from sllm_tune.deliver.engine import need
from sllm_tune.errors import BadInput, ModelError, SllmTuneError
from sllm_tune.wording import visible, without_secrets

try:
    from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
except ImportError as error:
    raise BadInput(
        f"aiohttp is not installed, and serving needs it ({error}).\n  Install it with: pip install 'sllm-tune[serve]'"
    ) from error

ANSWERS_AT_ONCE = 4  # of all models together, at least one of each: more take memory and make none of them faster
LONGEST_WAIT = 512  # requests
REQUEST_BYTES = 1 << 20
SILENCE_SECONDS = 600.0  # of a model, within an answer
LAST_SECONDS = 20  # for the answers under way when the process is told to end
NO_THINKING = {"enable_thinking": "false"}  # as prompts are made where the specialist is measured
OWN_FIELDS = ("lora", "id_slot")  # of llama.cpp's: they change what a context holds
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Plan:
    """What is served, and where."""

    base: str
    """The base's GGUF file."""

    adapters: dict[str, str | None]
    """By the name of a model its adapter's GGUF file; None is the base as it is."""

    aliases: dict[str, str]
    """Other names of models."""

    host: str
    port: int

    context: int
    """Most tokens of a prompt with its answer."""


@dataclass
class Model:
    """A model in a server of llama.cpp's."""

    server: object  # as long as it lives, it runs
    address: str
    free: asyncio.Semaphore  # its slots
    made_at: int = field(default_factory=lambda: int(time.time()))


def command(plan: Plan) -> list[str]:
    """The command that serves a plan, in a process that has not loaded what exporting needs."""
    return [sys.executable, "-m", "sllm_tune.deliver.front", json.dumps(asdict(plan))]


def main(plan: Plan) -> None:
    """Serve until the process is told to end (SIGTERM, SIGINT); answers under way are finished first.

    Raises:
        BadInput: the extra is missing, or the address cannot be had. ModelError: llama.cpp cannot load a file.
    """
    front = Front(plan)
    app = web.Application(client_max_size=REQUEST_BYTES, middlewares=[_explained])
    app.cleanup_ctx.append(front.running)
    app.router.add_get("/health", front.health)
    app.router.add_get("/v1/models", front.list_models)
    app.router.add_get("/v1/models/{name:.+}", front.one_model)
    app.router.add_post("/v1/chat/completions", front.answer)
    app.router.add_post("/v1/completions", front.answer)
    web.run_app(
        app,
        sock=bound(plan.host, plan.port),
        print=None,
        access_log=None,
        handler_cancellation=True,  # who has hung up waits for nothing
        shutdown_timeout=LAST_SECONDS,
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, before anything is loaded.

    Raises:
        BadInput: the address cannot be had.
    """
    if not 0 <= port < 1 << 16:
        raise BadInput(f"--port: {port} is none; the last is 65535.")
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        if found is not None:
            found.close()
        raise BadInput(
            f"serve: {host}, port {port}, cannot be had ({error}).\n  Name another with --host and --port."
        ) from error
    return found


class Front:
    """Sends each request to its model and passes the answer on as it comes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.models: dict[str, Model] = {}
        self.waiting = 0
        self._key = secrets.token_urlsafe()  # the models' own addresses answer nobody else on this machine
        self._session: ClientSession

    async def running(self, _: web.Application) -> AsyncGenerator[None]:
        """Load the models, and let them go at the end."""
        for name, adapter in self.plan.adapters.items():
            started = time.monotonic()
            self.models[name] = await asyncio.to_thread(self._start, name, adapter)
            _say(f"{name} loaded in {time.monotonic() - started:.1f} s")
        # A connection that llama.cpp closed while it was idle would lose the request that is sent on it.
        connector = TCPConnector(limit=0, force_close=True)
        timeout = ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_SECONDS)
        headers = {"Authorization": f"Bearer {self._key}"}
        self._session = ClientSession(connector=connector, timeout=timeout, headers=headers)
        host = f"[{self.plan.host}]" if ":" in self.plan.host else self.plan.host
        _say(f"{', '.join(self.models)} at http://{host}:{self.plan.port}/v1")
        yield
        await self._session.close()
        self.models.clear()

    def _start(self, name: str, adapter: str | None) -> Model:
        llama = need("xllamacpp")
        slots = max(1, ANSWERS_AT_ONCE // len(self.plan.adapters))
        settings = llama.CommonParams()
        settings.model.path, settings.n_gpu_layers = self.plan.base, 0
        settings.model_alias = {name}  # else answers name the local file
        if adapter is not None:
            settings.lora_adapters = [llama.CommonAdapterLoraInfo(adapter, 1.0)]
        settings.n_parallel, settings.n_ctx = slots, slots * self.plan.context
        threads = max(1, len(os.sched_getaffinity(0)) // len(self.plan.adapters))
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.n_threads_http = slots + 4  # some for those that hang up
        settings.cache_ram_mib = 0  # each would keep up to 8 GB of prompts
        settings.hostnames, settings.port, settings.api_keys = ["127.0.0.1"], 0, [self._key]
        settings.endpoint_slots = settings.ui = False
        # As the specialist was measured: its own template, no thinking, the most likely token where none is asked for.
        settings.use_jinja, settings.prefill_assistant, settings.default_template_kwargs = True, False, NO_THINKING
        settings.sampling.temp = 0.0
        settings.warmup, settings.verbosity = False, -1
        try:
            server = llama.Server(settings)
        except (RuntimeError, ValueError) as error:
            what = f"{self.plan.base} with {adapter}" if adapter else self.plan.base
            raise ModelError(f"{what}: llama.cpp's server cannot load it ({error}).") from error
        return Model(server, str(server.listening_address), asyncio.Semaphore(slots))

    async def health(self, _: web.Request) -> web.Response:
        """That the models are loaded."""
        return web.json_response({"status": "ok"})

    async def list_models(self, _: web.Request) -> web.Response:
        """As OpenAI's `/v1/models`."""
        return web.json_response({"object": "list", "data": [self._described(name) for name in self.models]})

    async def one_model(self, request: web.Request) -> web.Response:
        """As OpenAI's `/v1/models/{model}`."""
        return web.json_response(self._described(self._named(request.match_info["name"])))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A completion by the model that the request names, passed on as it comes."""
        body = await _body(request)
        body["model"] = name = self._named(body.get("model"))
        model = self.models[name]
        if self.waiting >= LONGEST_WAIT:
            raise Refused(503, "Too many requests are waiting; try again later.", "server_error", "overloaded")
        started, status = time.monotonic(), 499  # as of one that hangs up
        try:
            async with self._turn(model):
                made = await self._pass_on(request, model.address, body)
            status = made.status
            return made
        except Refused as error:
            status = error.status
            raise
        finally:  # neither what was asked nor what was answered
            _say(f"{request.path} {name} {status} {time.monotonic() - started:.2f} s")

    @contextlib.asynccontextmanager
    async def _turn(self, model: Model) -> AsyncGenerator[None]:
        """A slot of the model, in the order of coming."""
        self.waiting += 1
        try:
            await model.free.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            model.free.release()

    async def _pass_on(self, request: web.Request, address: str, body: dict[str, object]) -> web.StreamResponse:
        made: web.StreamResponse | None = None
        try:
            async with self._session.post(f"{address}{request.path}", json=body) as answer:
                kind = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
                made = web.StreamResponse(status=answer.status, headers=kind)
                await made.prepare(request)
                async for part in answer.content.iter_any():
                    await made.write(part)
                await made.write_eof()
                return made
        except (ClientError, asyncio.TimeoutError) as error:
            if made is not None:
                raise  # the answer is cut, and its connection with it
            _say(f"{request.path}: {type(error).__name__}: {error}")
            if isinstance(error, asyncio.TimeoutError):
                raise Refused(504, "The model did not answer in time.", "server_error", None) from error
            raise Refused(502, "The model cannot be reached.", "server_error", None) from error

    def _named(self, name: object) -> str:
        """The model of a name."""
        if not isinstance(name, str):
            raise Refused(400, "You must name a model.", "invalid_request_error", None, "model")
        known = self.plan.aliases.get(name, name)
        if known not in self.models:
            text = f"The model {visible(name)[:100]!r} does not exist; there are {', '.join(self.models)}."
            raise Refused(404, text, "invalid_request_error", "model_not_found", "model")
        return known

    def _described(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self.models[name].made_at, "owned_by": "sllm-tune"}


class Refused(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(self, status: int, text: str, kind: str, code: str | None, parameter: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.error = {"message": text, "type": kind, "param": parameter, "code": code}


async def _body(request: web.Request) -> dict[str, object]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.", "invalid_request_error", None)
    if own := [key for key in OWN_FIELDS if key in body]:
        text = f"{own[0]}: not taken here; a model is chosen by its name alone."
        raise Refused(400, text, "invalid_request_error", None, own[0])
    return body


@web.middleware
async def _explained(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in OpenAI's form, and none with what happened inside."""
    try:
        return await handler(request)
    except Refused as error:
        made, status = error.error, error.status
    except web.HTTPException as error:
        status = error.status
        made = {"message": error.reason, "type": "invalid_request_error", "param": None, "code": None}
    except (OSError, ClientError, asyncio.TimeoutError):
        raise  # of a connection that is gone, or cut
    except Exception as error:
        _say(f"{type(error).__name__}: {error}")
        made, status = {"message": "Internal error.", "type": "server_error", "param": None, "code": None}, 500
    return web.json_response({"error": made}, status=status)


def _say(text: str) -> None:
    print(f"serve: {visible(without_secrets(text))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(Plan(**json.loads(sys.argv[1])))
    except SllmTuneError as error:
        print(f"sllm-tune: {visible(without_secrets(str(error)))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
