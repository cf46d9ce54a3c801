"""Fixtures for every test: nothing leaves the test's own folders, and models are tiny, random and made here."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "Clause: The tenant shall pay the rent on the first day of each month.",
    "Question: does the clause bind the tenant? Answer Yes or No.",
    "The landlord may inspect the premises after giving written notice.",
    "임차인은 매월 초일에 차임을 지급하여야 한다. 임대인은 통지 후 목적물을 점검할 수 있다.",
]
CLAUSES_TASK = """\
# Does a clause bind the party? Made for the tests; the answer is Yes where the clause says "shall".
task: clauses
output_type: multiple_choice
doc_to_text: |-
  Clause: {{clause}}
  Question: {{question}}
  Answer Yes or No.
doc_to_choice: ["Yes", "No"]
doc_to_target: "{{ 0 if binding else 1 }}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
  source: ../../data/clauses.jsonl
  licence: CC0-1.0
  split_by: [question, clause]
  split: {train: 0.5, validation: 0.2, test: 0.3}
"""
SKIES_TASK = """\
# General ability, for the tests.
task: skies
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{ colours }}"
doc_to_target: "{{ colours.index(answer) }}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
  source: ../../data/skies.jsonl
  licence: CC0-1.0
"""
RECIPE = """\
name: tiny
domain: legal
base_model:
  path: {base}
data:
  tasks: [clauses]
  max_length: 256
  allow_leaks: [clauses]  # all of its rows are much alike
train:
  lora: {{r: 4, lora_alpha: 8, target_modules: all-linear}}
  sft: {{learning_rate: 0.01, max_steps: 4, per_device_train_batch_size: 4, save_steps: 2, logging_steps: 1}}
evaluate:
  domain: [clauses]
  general: [skies]
  limit_instructions: 10
  num_fewshot: 2
  batch_size: 8
"""

_scratch = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    # Before any library is imported: they read these once.
    config.stash[_scratch] = folder = tempfile.TemporaryDirectory(prefix="sllm-tune-tests-")
    os.environ |= {
        "SLLM_TUNE_CACHE": f"{folder.name}/cache",
        "HF_HOME": f"{folder.name}/huggingface",
        "HF_HUB_OFFLINE": "1",
    }


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_scratch].cleanup()


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A byte-level tokenizer, so that any text has tokens; keywords go to `PreTrainedTokenizerFast`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        SENTENCES * 4,
        trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )

    def make(*, adds_bos: bool = False, **options: Any) -> Any:
        tokenizer = Tokenizer.from_str(trained.to_str())
        if adds_bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
            )
        defaults = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
        extra = {"additional_special_tokens": specials[1:]}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **extra, **(defaults | options))

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    """ChatML, with an end-of-text token that is not the end of a turn."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a random Llama of 100 thousand parameters and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,  # bitsandbytes quantises blocks of 64
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # at the usual 0.02 every answer is about as likely as every other
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("tiny-base")
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Path:
    """The recipe of a small domain folder, made for one test."""
    return write_project(tmp_path, tiny_base)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The run folder of `write_project`'s recipe, from data to report; for tests that copy it."""
    from sllm_tune import load_recipe, pipeline

    folder = tmp_path_factory.mktemp("finished")
    pipeline.run(load_recipe(write_project(folder, tiny_base)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def asked_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The run folder of a specialist of two tasks that has learned them; for tests that ask it."""
    import asked

    return asked.finished_run(tmp_path_factory.mktemp("asked"), tiny_base)


def write_project(folder: Path, base: Path) -> Path:
    """A domain with a task of 240 rows, 24 questions by 10 clauses, and a general one of 12; returns its recipe."""
    legal, general, data = (folder / "recipes" / name for name in ("legal", "general", "data"))
    for part in (legal / "tasks", general / "tasks", data):
        part.mkdir(parents=True)
    (legal / "tasks" / "clauses.yaml").write_text(CLAUSES_TASK)
    (general / "tasks" / "skies.yaml").write_text(SKIES_TASK)
    (legal / "tiny.yaml").write_text(RECIPE.format(base=base))
    write_rows(data / "clauses.jsonl", clause_rows())
    colours = ["blue", "dark blue", "green", "red and gold"]
    choices = [colours[n % 4 :] + colours[: n % 4] for n in range(12)]
    skies = [
        {"question": f"What colour is the sky at {n} o'clock?", "colours": choices[n], "answer": colours[n % 3]}
        for n in range(12)
    ]
    write_rows(data / "skies.jsonl", skies)
    return legal / "tiny.yaml"


def clause_rows() -> list[dict[str, Any]]:
    parties = ["tenant", "landlord", "agent", "guarantor", "임차인"]
    clauses = [f"The {party} {verb} give notice in writing." for party in parties for verb in ("shall", "may")]
    questions = [f"Is section {n} of the contract binding?" for n in range(24)]
    return [
        {"question": question, "clause": clause, "binding": "shall" in clause}
        for question, clause in itertools.product(questions, clauses)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
