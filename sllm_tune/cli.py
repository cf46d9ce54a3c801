"""`sllm-tune`: parse, call one function, print the path of what was made.

Exit status: 0 done, 1 a gate or the job failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sllm_tune.errors import SllmTuneError
from sllm_tune.wording import visible, without_secrets

COMMANDS = {
    "run": "everything, from data to report",
    "check": "validate a recipe and show three examples as the model will see them",
    "prepare": "splits and examples",
    "resize": "the base in the size that the recipe asks for",
    "train": "the adapter",
    "evaluate": "the specialist, its base and the controls on the same items",
    "report": "report.html and report.md",
}
RECIPE = "a recipe's YAML file, or the name of one that comes with the package, such as legal/quickstart"
SCHEMA = "recipe, results, card, steps, export or manifest; default: %(default)s"
SMOKE = "a tiny random model on sample rows instead: the whole way in seconds, without a network"
EPILOG = """A stage makes what it needs first and skips what is up to date.
Overrides: sllm-tune run recipes/legal/quickstart.yaml train.sft.learning_rate=5e-4"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # text that a terminal's encoding lacks is shown, not an error
            stream.reconfigure(errors="backslashreplace")
    doing = "sllm-tune"
    try:
        arguments = _arguments(sys.argv[1:] if argv is None else argv)
        doing = arguments.command
        return _run(arguments)
    except SllmTuneError as error:
        _tell(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on from here")
        return 130
    except Exception as error:
        _tell(_explained(error, doing))
        return 1
    finally:
        _flush()


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "schema":
        from sllm_tune.schemas import schema

        _show(json.dumps(schema(arguments.of), indent=2, ensure_ascii=False))
        return 0
    if arguments.command == "export":
        return _export(arguments)
    if arguments.command == "publish":
        return _publish(arguments)
    if arguments.command in ("ask", "chat"):
        return _ask(arguments)
    if arguments.command == "serve":
        return _serve(arguments)
    from sllm_tune import load_recipe, pipeline
    from sllm_tune.smoke import smoke

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.smoke:
        recipe = smoke(recipe)
    if arguments.command == "check":
        _show(pipeline.check(recipe))
        return 0
    make = pipeline.report if arguments.command == "run" else getattr(pipeline, arguments.command)
    path = make(recipe, arguments.run_dir)
    status = _summed_up(path) if arguments.command in ("run", "evaluate", "report") else 0
    _show(str(path))
    return status


def _export(arguments: argparse.Namespace) -> int:
    from sllm_tune.deliver.export import export
    from sllm_tune.said import said_once

    out = arguments.out or Path("exported") / arguments.run_dir.resolve().name
    with said_once():
        made = export(arguments.run_dir, arguments.format, out, quantize=arguments.quantize, base=arguments.base)
    _show(str(made))
    return 0


def _ask(arguments: argparse.Namespace) -> int:
    from sllm_tune.said import said_once

    with said_once():
        if arguments.command == "chat":
            from sllm_tune.deliver.chat import chat

            chat(arguments.run_dir)
            return 0
        from sllm_tune.deliver.ask import ask

        _show(ask(arguments.run_dir, arguments.text, arguments.input, arguments.output, arguments.task))
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from sllm_tune.deliver.publish import describe, publish

    plan = publish(
        arguments.run_dir,
        arguments.repo,
        format=arguments.format,
        yes=arguments.yes,
        private=None if arguments.public is None else not arguments.public,
        licence=arguments.licence,
        base_id=arguments.base_id,
        allow=arguments.allow,
    )
    _show(describe(plan))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from sllm_tune.deliver.serve import serve

    serve(
        arguments.run_dirs,
        host=arguments.host,
        port=arguments.port,
        base=arguments.base,
        out=arguments.out,
        context=arguments.context,
        engine=arguments.engine,
    )
    return 0


def _show(text: str) -> None:
    """Print; a reader that wants no more of it, such as `head`, is not an error."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"sllm-tune: {visible(without_secrets(message))}", file=sys.stderr, flush=True)


def _flush() -> None:
    """Write out what is left now: at exit Python could only say that it failed."""
    for name in ("stdout", "stderr"):
        try:
            if stream := getattr(sys, name):
                stream.flush()
        except OSError:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  open until the process ends


def _explained(error: Exception, doing: str) -> str:
    """What was being done, what went wrong, and what to do: the one end of every exception that nobody foresaw."""
    from sllm_tune.unexpected import fix, log, one_line

    stage = error.__dict__.get("stage")
    what = f"{doing}, at the stage {stage}" if stage else doing
    where = log(error, doing)
    kept = "Finished stages are kept, and the same command goes on from there."
    if known := fix(error):
        return f"{what}: {one_line(error)}\n  {known}\n  {kept} The traceback is in {where}."
    return (
        f"{what}: stopped by an error that it does not know: {one_line(error)}\n  The traceback is in {where}. {kept}\n"
        "  Please report it with the recipe and that file, after a look for anything private: "
        "it is a fault of sllm-tune that it has no better message."
    )


def _summed_up(path: Path) -> int:
    """The end of a run, told on stderr beside the progress; 1 when the recipe's gate failed."""
    from sllm_tune.evaluate.schema import Results
    from sllm_tune.report.terminal import summary

    run_dir = path.parent if path.suffix == ".html" else path.parent.parent
    results = Results.read(run_dir / "scores" / "results.json", "evaluate")
    with contextlib.suppress(OSError):  # nobody is there to be told
        print(f"\n{summary(results, run_dir)}\n", file=sys.stderr, flush=True)
    if results.gate is None or results.gate.passed:
        return 0
    _tell("the gate failed")
    return 1


class _Version(argparse.Action):
    """Looked up when it is asked for: it takes longer than all of `--help`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"sllm-tune {version('sllm-tune')}")
        parser.exit()


class _Commands(Protocol):
    """Where argparse has the commands."""

    choices: dict[str, argparse.ArgumentParser]

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if not argv or argv[0] not in commands:
        return parser.parse_args(argv)
    # Not by way of `parser`: it ends the overrides of a recipe, and the text of a question, at the first option.
    return commands[argv[0]].parse_intermixed_args(argv[1:], argparse.Namespace(command=argv[0]))


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="sllm-tune",
        description="A recipe in, a smaller domain specialist and an honest side-by-side report out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_stages, _add_asking, _add_export, _add_publish, _add_serve, _add_schema):
        add(commands)
    return parser, commands.choices


def _add_stages(commands: _Commands) -> None:
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument(
            "recipe",
            metavar="RECIPE",
            help=RECIPE,
        )
        command.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces a value of the recipe")
        command.add_argument("--smoke", action="store_true", help=SMOKE)
        if name != "check":
            command.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/<name of the recipe>")


def _add_export(commands: _Commands) -> None:
    what = "write a finished run's specialist for other engines, held against the answers that were scored"
    export = commands.add_parser("export", help=what, description=what)
    formats = "merged, adapter, gguf, adapter-gguf or openvino; default: %(default)s"
    export.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, finished to its scores")
    export.add_argument("--format", default="gguf", help=formats)
    export.add_argument("--quantize", default="f16", help="f16, Q8_0, Q5_K_M or Q4_K_M, of gguf; default: %(default)s")
    export.add_argument("--out", type=Path, metavar="DIR", help="default: exported/<name of the run folder>")
    export.add_argument(
        "--base", type=Path, metavar="DIR", help="folder of the base, for an adapter whose base is on no hub"
    )


def _add_publish(commands: _Commands) -> None:
    what = "push a finished run's adapter or merged model, with its card, to a model hub"
    publish = commands.add_parser(
        "publish", help=what, description=f"{what}; without --yes it only shows what it would"
    )
    of_recipe = "default: the recipe's publish"
    publish.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, finished to its scores")
    publish.add_argument("--repo", metavar="OWNER/NAME", help=f"made where it is not there; {of_recipe}")
    publish.add_argument("--format", help=f"adapter or merged; {of_recipe}")
    publish.add_argument("--yes", action="store_true", help="push; else nothing is sent")
    public = f"a repository that everybody can read, or not; {of_recipe}, which is private unless it says otherwise"
    publish.add_argument("--public", action=argparse.BooleanOptionalAction, help=public)
    publish.add_argument(
        "--licence", metavar="ID", help=f"of what is published, as the hub names it; {of_recipe}, else the base's"
    )
    publish.add_argument(
        "--base-id", metavar="OWNER/NAME", help=f"the base on the hub, where the recipe has it elsewhere; {of_recipe}"
    )
    allow = "a reason against publishing that you have cleared, as the refusal names it; may be given more than once"
    publish.add_argument("--allow", action="append", default=[], metavar="REASON", help=allow)


def _add_asking(commands: _Commands) -> None:
    what = "answers of a finished run's specialist, by the prompt, template, stop token and scorer that were scored"
    ask = commands.add_parser("ask", help=what, description=what)
    ask.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, finished to its scores")
    ask.add_argument("text", nargs="?", metavar="TEXT", help="stands for the column that the prompt reads; - is stdin")
    ask.add_argument("--task", metavar="NAME", help="default: the only one of the run's domain")
    ask.add_argument("--input", type=Path, metavar="ROWS", help="in place of a text: .jsonl, .json, .csv or .tsv")
    ask.add_argument("--output", type=Path, metavar="ANSWERS", help="the .csv or .jsonl to make of --input")
    what = "a conversation with a finished run's specialist"
    chat = commands.add_parser("chat", help=what, description=what)
    chat.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, finished to its scores")


def _add_serve(commands: _Commands) -> None:
    what = "answer as one base and the specialists of finished runs, each by its name, through vLLM or llama.cpp"
    serve = commands.add_parser("serve", help=what, description=f"{what}; the interface is OpenAI's")
    serve.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="run folders of one base, finished")
    host = "address to listen on; there is no password: any but the loopback lets others ask; default: %(default)s"
    serve.add_argument("--host", default="127.0.0.1", help=host)
    serve.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    serve.add_argument(
        "--base", type=Path, metavar="DIR", help="folder of the base, where it is not where the recipe has it"
    )
    out = "where adapters are exported to, for llama.cpp; default: each run's export/"
    serve.add_argument("--out", type=Path, metavar="DIR", help=out)
    context = "most tokens of a prompt with its answer; default: %(default)s"
    serve.add_argument("--context", type=int, default=4096, metavar="TOKENS", help=context)
    serve.add_argument("--engine", help="vllm or llama.cpp; default: vllm where it and a CUDA device are there")


def _add_schema(commands: _Commands) -> None:
    what = "print the JSON schema of a recipe, or of a file of a run folder"
    schema = commands.add_parser("schema", help=what, description=what)
    schema.add_argument("of", nargs="?", default="recipe", metavar="OF", help=SCHEMA)


if __name__ == "__main__":
    sys.exit(main())
