"""Logits are whole: near ties between choices are decided by the model, not by the rounding of its last layer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import section
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear

from sllm_tune.answer.local import PackedLM
from sllm_tune.model import load as loading
from sllm_tune.model.head import ROWS_AT_A_TIME, ExactHead, with_exact_head
from sllm_tune.model.load import load_model, load_tokenizer, scoring_dtype


def far_from_nought(checkpoint: Path, dtype: torch.dtype) -> Any:
    """A model whose logits share so large a part that in bfloat16 they are multiples of a quarter of a nat or more."""
    model: Any = load_model(str(checkpoint), section(checkpoint), dtype=dtype)
    with torch.no_grad():
        model.model.norm.weight[0] = 256
        model.get_output_embeddings().weight[:, 0] = 1
    return model


def test_a_head_in_fewer_bits_gives_the_products_of_float32():
    torch.manual_seed(0)
    size = ROWS_AT_A_TIME + 100
    for bias in (False, True):
        head: Any = torch.nn.Linear(16, size, bias=bias, dtype=torch.bfloat16)
        head.__class__ = ExactHead
        hidden = torch.randn(2, 3, 16, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = head(hidden)
        wanted = linear(hidden.float(), head.weight.float(), head.bias.float() if bias else None)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, wanted)
        logits.square().sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.abs().sum() > 0


def test_choices_that_bfloat16_cannot_tell_apart_are_told_apart(tiny_base: Path):
    tokenizer = load_tokenizer(str(tiny_base), section(tiny_base))
    context = list(range(5, 15))
    requests = [(("", ""), context, [token]) for token in range(20, 60)]
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        lm = PackedLM(far_from_nought(tiny_base, dtype), tokenizer, 8, chat_template=True)
        found[dtype] = [nats for nats, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
    assert len(set(found[torch.float32])) == len(requests)
    assert len(set(found[torch.bfloat16])) == len(requests)
    plain = far_from_nought(tiny_base, torch.bfloat16)
    plain.get_output_embeddings().__class__ = torch.nn.Linear
    lm = PackedLM(plain, tokenizer, 8, chat_template=True)
    rounded = [nats for nats, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
    assert len(set(rounded)) < len(requests) / 2  # else this would show nothing


def test_a_head_that_is_exact_is_saved_copied_and_adapted_as_any_other(tiny_base: Path, tmp_path: Path):
    model: Any = load_model(str(tiny_base), section(tiny_base), dtype=torch.bfloat16)
    assert type(model.get_output_embeddings()) is ExactHead
    ids = torch.tensor([[5, 6, 7]])
    logits = model(input_ids=ids).logits
    assert logits.dtype == torch.float32
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.get_output_embeddings().weight.zero_()
    assert torch.equal(model(input_ids=ids).logits, logits)
    assert not torch.equal(copied(input_ids=ids).logits, logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(str(tmp_path), section(tmp_path), dtype=torch.bfloat16)(input_ids=ids).logits, logits)
    adapted: Any = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert not any("lm_head" in name for name, _ in adapted.named_parameters() if "lora" in name)
    assert with_exact_head(load_model(str(tiny_base), section(tiny_base), dtype=torch.float32)).dtype == torch.float32


def test_a_cpu_scores_in_float32_where_its_memory_holds_the_model(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loading, "compute_dtype", lambda: torch.bfloat16)
    asked = (str(tiny_base), section(tiny_base))
    assert scoring_dtype(*asked) == torch.float32
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: 1000)
    assert scoring_dtype(*asked) == torch.bfloat16
    assert "near ties may be answered otherwise elsewhere" in capsys.readouterr().err
