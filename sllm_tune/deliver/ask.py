"""Ask a finished run's specialist: a text, or a file with any number of rows, of which none is lost or asked twice."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from tqdm import tqdm

from sllm_tune.deliver.answers_file import AnswersFile
from sllm_tune.deliver.specialist import AskedTask, Specialist, require_columns
from sllm_tune.errors import BadInput
from sllm_tune.rows.read import table_rows
from sllm_tune.runs.files import fingerprint, sha256, versions
from sllm_tune.runs.folder import Run
from sllm_tune.wording import listed, visible


def ask(run_dir: Path, text: str | None, rows: Path | None, output: Path | None, task: str | None) -> str:
    """What the command prints: the answer to a text ("-" is standard input), or where those to a table are.

    Raises:
        BadInput: there is neither a text nor a table with an output, or there are both; or as `ask_text`, `ask_file`.
        JobFailed: as `ask_file`.
    """
    if (text is None) == (rows is None) or (rows is None) != (output is None):
        raise BadInput(
            'ask: name a text, as in sllm-tune ask RUN "...", or rows and where their answers go: '
            "--input ROWS --output ANSWERS."
        )
    if rows is not None and output is not None:
        return str(ask_file(run_dir, rows, output, task))
    return ask_text(run_dir, sys.stdin.read().removesuffix("\n") if text == "-" else str(text), task)


def ask_text(run_dir: Path, text: str, task: str | None = None) -> str:
    """The answer to a text as a terminal may show it; of a choice followed by a tab and its probability.

    Raises:
        BadInput: as `Specialist` and its `ask`.
    """
    answer = Specialist(run_dir).ask(text, task)
    shown = visible(str(answer.answer))
    return shown if answer.probability is None else f"{shown}\t{answer.probability:.4f}"


def ask_file(run_dir: Path, rows: Path, output: Path, task: str | None = None) -> Path:
    """Write an answer for each row of a table: its number, its id, the answer, its probability or what is wrong.

    It goes on where it was cut off, if run, task and rows are the same; otherwise it begins anew and says so. Rows of
    JSON lines are read as they are needed; a table of another kind is read whole.

    Args:
        run_dir: The run folder.
        rows: A .jsonl, .ndjson, .json, .csv or .tsv with the columns that the task file reads.
        output: The .csv or .jsonl to make.
        task: Of the run; None is the only one of its domain.

    Returns:
        `output`.

    Raises:
        BadInput: the run is not finished; the table cannot be read, or one of its rows lacks a column; `output` is
            there already.
        JobFailed: another process writes `output`.
    """
    specialist = Specialist(run_dir)
    chosen = specialist.task(task)
    header = _header(specialist, chosen, rows)
    held = table_rows(rows) if _is_lines(rows) else list(table_rows(rows))
    total = require_columns(held, chosen, str(rows))
    with AnswersFile(output, header) as file:
        _say_where_it_begins(file, chosen.file.name, total)
        started, before = time.monotonic(), file.done
        left = itertools.islice(table_rows(rows) if _is_lines(rows) else held, before, None)
        stream = specialist.stream(left, chosen, before + 1)
        with tqdm(total=total, initial=before, desc="asking", unit="row", disable=None) as bar:
            while chunk := list(itertools.islice(stream, specialist.chunk_rows)):
                file.append(chunk)
                bar.update(len(chunk))
        file.finish()
    seconds = time.monotonic() - started
    asked = file.done - before
    _tell(f"{asked:,} rows in {seconds:.1f} s, {asked / max(seconds, 1e-9):.1f} a second")
    if file.first_error is not None:
        one = file.first_error
        _tell(f"{file.errors:,} of {total:,} rows have an error and no answer; the first, row {one.row}: {one.error}")
    return output


def _header(specialist: Specialist, task: AskedTask, rows: Path) -> dict[str, object]:
    """What answers depend on, in words that a message can name."""
    try:
        content = sha256(rows)
    except OSError as error:
        raise BadInput(f"{rows}: cannot be read ({error.strerror}).\n  Name a file that you may read.") from error
    made = [Run(specialist.dir).files(stage) for stage in ("prepare", "merge")]
    return {
        "task": task.file.name,
        "rows": content,
        "run": fingerprint({name: file["sha256"] for files in made for name, file in files.items()}),
        "versions": versions(),
    }


def _say_where_it_begins(file: AnswersFile, task: str, total: int) -> None:
    if file.reset:
        _tell(f"{listed(file.reset, 'and')} changed since {file.path} was begun, so it begins anew")
    again = f"; going on after row {file.done:,}" if file.done else ""
    _tell(f"{task}, {total:,} rows{again}")


def _is_lines(rows: Path) -> bool:
    return rows.suffix.lower() in (".jsonl", ".ndjson")


def _tell(text: str) -> None:
    print(f"ask: {visible(text)}", file=sys.stderr, flush=True)
