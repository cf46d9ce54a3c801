"""`sllm-tune`: parse, call one function, print the path of what was made.

Exit status: 0 done, 1 a gate or the job failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sllm_tune.errors import SllmTuneError
from sllm_tune.faults import visible, without_secrets

COMMANDS = {
    "run": "everything, from data to report",
    "check": "validate a recipe and show three examples as the model will see them",
    "prepare": "splits and examples",
    "resize": "the base in the size that the recipe asks for",
    "train": "the adapter",
    "evaluate": "the specialist, its base and the controls on the same items",
    "report": "report.html and report.md",
}
SMOKE = "a tiny random model on sample rows instead: the whole way in seconds, without a network"
EPILOG = """A stage makes what it needs first and skips what is up to date.
Overrides: sllm-tune run recipes/legal/quickstart.yaml train.sft.learning_rate=5e-4"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "schema":
            from sllm_tune.recipe import recipe_schema

            print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
            return 0
        from sllm_tune import load_recipe, pipeline
        from sllm_tune.smoke import smoke

        recipe = load_recipe(arguments.recipe, arguments.overrides)
        if arguments.smoke:
            recipe = smoke(recipe)
        if arguments.command == "check":
            print(pipeline.check(recipe))
            return 0
        path = getattr(pipeline, arguments.command)(recipe, arguments.run_dir)
        status = _gate_status(path) if arguments.command in ("run", "evaluate", "report") else 0
        print(path)
        return status
    except SllmTuneError as error:
        print(f"sllm-tune: {visible(without_secrets(str(error)))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("sllm-tune: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _gate_status(path: Path) -> int:
    """1 when the recipe's gate failed, with its reasons on stderr."""
    folder = path.parent if path.suffix == ".html" else path.parent.parent
    gate = json.loads((folder / "scores" / "results.json").read_text(encoding="utf-8"))["gate"]
    if gate is None or gate["passed"]:
        return 0
    print("sllm-tune: the gate failed\n" + "\n".join(f"  {reason}" for reason in gate["reasons"]), file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sllm-tune",
        description="A recipe in, a smaller domain specialist and an honest side-by-side report out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("recipe", metavar="RECIPE", help="a recipe's YAML file")
        command.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces a value of the recipe")
        command.add_argument("--smoke", action="store_true", help=SMOKE)
        if name != "check":
            command.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/<name of the recipe>")
    commands.add_parser("schema", help="print the recipe's JSON schema, for editors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
