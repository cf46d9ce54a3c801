"""Export: what leaves a run folder loads elsewhere, answers as what was scored, and is refused where it does not."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import finished_run, random_adapter, section

from sllm_tune.deliver import half_made
from sllm_tune.deliver.export import export
from sllm_tune.deliver.gguf_model import to_gguf
from sllm_tune.errors import BadInput, JobFailed, ModelError
from sllm_tune.model.checkpoint import readable_elsewhere
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.smoke import FAMILIES, tiny_base as tiny_of
from sllm_tune.tasks.encode import Encoder

TEXTS = ["The tenant shall pay 1234 dollars.  Two  spaces\n\nand lines.", "임차인은 매월 초일에 지급한다.", "Don't; 3.14!"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return finished_run(tmp_path_factory.mktemp("run"), tiny_base)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoiled."""
    return Path(shutil.copytree(run, tmp_path / "copied"))


@pytest.fixture
def llama() -> Any:
    """The engine of the extra."""
    pytest.importorskip("cyllama")
    pytest.importorskip("xllamacpp")
    from sllm_tune.deliver.engine import LlamaFile

    return LlamaFile


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def engine_logits(file: Any, ids: list[int]) -> np.ndarray:
    return np.stack([file.next_log_probabilities(ids[: n + 1]) for n in range(len(ids))])


@torch.no_grad()
def model_logits(checkpoint: Path, ids: list[int]) -> np.ndarray:
    model = load_model(str(checkpoint), section(checkpoint), dtype=torch.float32)
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1).numpy()


# --- GGUF is the checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_has_the_tokens_and_logits_of_its_checkpoint(family: str, tmp_path: Path, llama: Any):
    checkpoint = tiny_of(family, TEXTS * 4)
    to_gguf(checkpoint, tmp_path / "model.gguf")
    file = llama(tmp_path / "model.gguf", threads=1, window=256)
    encoder = Encoder(load_tokenizer(str(checkpoint), section(checkpoint)), chat_template=True)
    prompt = encoder.render([{"role": "user", "content": TEXTS[0]}])
    begin = encoder.tokenizer.bos_token
    text = prompt + TEXTS[1]
    ids = encoder.ids(text)
    if family != "phi3":  # llama.cpp drops white space after Phi's tokens only where all of Phi's tokens are there
        assert file.encode(text, add_special=not (begin and text.startswith(begin))) == ids
    assert np.abs(engine_logits(file, ids[:40]) - model_logits(checkpoint, ids[:40])).max() < 0.1
