"""A run's folders without sllm_tune: plain transformers and peft give the answers of `ask`, and stop by themselves."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asked
import pytest
from conftest import CHATML

from sllm_tune.deliver.card import Asked, Terms, model_card
from sllm_tune.deliver.export import export
from sllm_tune.deliver.specialist import Specialist
from sllm_tune.tasks.encode import Encoder

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
    card = model_card(specialist.results, Terms("./.", "apache-2.0"), kind, Asked(specialist.encoder, description))
    code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "from_pretrained" in block)
    rows = asked.rows()[:3]
    made = specialist.ask(rows, "binding" if description else "party")
    texts = [f"{row['question']} {row['clause']}" if description else row["clause"] for row in rows]
    assert [text.lower() for text in alone(CARD, folders[kind], code, "Your text here", texts)] == [
        one.answer for one in made
    ]


def test_the_lines_of_the_card_ask_as_the_template_takes_it(run: Path, make_tokenizer: Callable[..., Any]):
    results = json.loads((run / "scores" / "results.json").read_text())

    def lines(template: str) -> str:
        asked_so = Asked(Encoder(make_tokenizer(chat_template=template), chat_template=True), "Be brief.")
        return model_card(results, Terms("firm/specialist", "apache-2.0"), "merged", asked_so)

    system = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Your text here"}]'
    assert f"messages = {system}" in lines(CHATML)
    assert "enable_thinking" not in lines(CHATML)
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    assert 'messages = [{"role": "user", "content": "Be brief.\\n\\nYour text here"}]' in lines(refuses + CHATML)
    thinks = "{% if add_generation_prompt and enable_thinking is defined and enable_thinking %}<think>{% endif %}"
    assert '"return_tensors": "pt", "enable_thinking": False}' in lines(CHATML + thinks)
