"""A run's folders without sllm_tune: plain transformers and peft give the answers of `ask`, and stop by themselves."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import asked
import pytest

from sllm_tune.deliver.card import Asked, Terms, model_card
from sllm_tune.deliver.export import export
from sllm_tune.deliver.specialist import Specialist

PLAIN = """\
import json, sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, kind, conversations = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
load = AutoPeftModelForCausalLM if kind == "adapter" else AutoModelForCausalLM
model = load.from_pretrained(folder, dtype="auto")
answers = []
for messages in conversations:
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    answers.append([tokenizer.decode(made, skip_special_tokens=True), len(made), tokenizer.decode(made[-1:])])
assert not any(name.startswith("sllm_tune") for name in sys.modules)
print(json.dumps(answers))
"""
CARD = """\
import contextlib, io, json, os, sys
folder, code, question, texts = json.load(sys.stdin)
os.chdir(folder)
answers = []
for text in texts:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code.replace(json.dumps(question), json.dumps(text)), {})
    answers.append(said.getvalue().strip())
assert not any(name.startswith("sllm_tune") for name in sys.modules)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def run(asked_run: Path) -> Path:
    return asked_run


@pytest.fixture(scope="module")
def folders(run: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run's own merged model, and both as they are exported."""
    out = tmp_path_factory.mktemp("exported")
    made: dict[str, Path] = {"run": run / "merged", "merged": export(run, "merged", out)}
    return {**made, "adapter": export(run, "adapter", out, base=tiny_base)}


def alone(code: str, folder: Path, *given: Any) -> Any:
    """What a process prints that has this code and no project to import."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        input=json.dumps([str(folder), *given]),
        capture_output=True,
        text=True,
        timeout=200,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def conversation(row: dict[str, Any], task: str) -> list[dict[str, str]]:
    if task == "party":
        return [{"role": "user", "content": row["clause"]}]
    said = {"role": "system", "content": f"Say how {row['party']} is bound."}
    return [said, {"role": "user", "content": f"{row['question']} {row['clause']}"}]


@pytest.mark.parametrize("kind", ["run", "merged", "adapter"])
def test_plain_transformers_and_peft_answer_as_ask_and_stop(run: Path, folders: dict[str, Path], kind: str):
    rows, tasks = asked.rows()[:50], ("binding", "party")
    ours = [answer.answer for task in tasks for answer in Specialist(run).ask(rows, task)]
    theirs = alone(PLAIN, folders[kind], kind, [conversation(row, task) for task in tasks for row in rows])
    assert [text.lower() for text, _, _ in theirs] == ours
    assert all(tokens < 64 and last == "<|im_end|>" for _, tokens, last in theirs)


@pytest.mark.parametrize(("kind", "description"), [("merged", ""), ("adapter", "Say how tenant is bound.")])
def test_the_lines_of_the_card_answer_as_ask(run: Path, folders: dict[str, Path], kind: str, description: str):
    specialist = Specialist(run)
    card = model_card(
        specialist.results, Terms("./.", "apache-2.0"), kind, Asked(specialist.encoder, description)
    )
    code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "from_pretrained" in block)
    rows = asked.rows()[:3]
    made = specialist.ask(rows, "binding" if description else "party")
    texts = [f"{row['question']} {row['clause']}" if description else row["clause"] for row in rows]
    assert [text.lower() for text in alone(CARD, folders[kind], code, "Your text here", texts)] == [
        one.answer for one in made
    ]


def test_the_lines_of_the_card_put_a_description_where_the_template_has_it(tmp_path: Path):
    for family, begins in (("gemma3", '[{"role": "user", "content": "Be brief.'), ("smollm2", '[{"role": "system"')):
        base = str(tiny_base_of(family, ["Be brief."]))
        encoder = load_encoder(base, BaseModelSection(path=base))
        results = {"recipe": {"base_model": {"chat_template": True}}}
        lines = load_lines(results, "firm/specialist", "merged", "Your text here", Asked(encoder, "Be brief."))
        assert f"messages = {begins}" in lines
