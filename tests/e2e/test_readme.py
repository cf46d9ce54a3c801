"""What the READMEs show is what happens."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.ko.md")


def commands(readme: str) -> list[list[str]]:
    block = (ROOT / readme).read_text(encoding="utf-8").split("<!-- four commands -->")[1].split("```")[1]
    return [shlex.split(line.partition("#")[0]) for line in block.strip().splitlines()]


def test_the_readmes_open_with_the_same_four_commands():
    first, other = map(commands, READMES)
    assert len(first) == 4
    assert first == other


@pytest.mark.slow
def test_the_four_commands_of_the_readme_turn_a_file_into_answers(tmp_path: Path):
    samples = (ROOT / "recipes" / "finance" / "samples" / "gaap_statement.jsonl").read_text(encoding="utf-8")
    tags = [json.loads(line)["tag"] for line in samples.splitlines()]
    with (tmp_path / "tags.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["tag"], *([tag] for tag in tags)])
    for command in commands("README.md"):
        assert command[0] == "sllm-tune"
        smoke = {"check": ["--smoke"], "run": ["--smoke", "--run-dir", "runs/finance-quickstart"]}.get(command[1], [])
        done = subprocess.run(
            [sys.executable, "-m", "sllm_tune", *command[1:], *smoke], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == len(tags)
    assert all(row["answer"] and not row["error"] for row in answers)
    assert list((tmp_path / "exported").glob("*.gguf"))


def test_every_link_of_a_readme_leads_somewhere():
    folders = ("benchmarks", "docs/guides", "recipes", "scripts")
    for path in [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_code_tour_names_at_most_twelve_files_that_are_there():
    tour = (ROOT / "README.md").read_text(encoding="utf-8").split("**Code tour.**")[1].split("\n\n")[0]
    files = set(re.findall(r"`([a-z_/]+\.py)`", tour.partition("twelve files:")[2]))
    assert 10 <= len(files) <= 12
    assert all((ROOT / "sllm_tune" / name).is_file() for name in files)
