"""The search for the best model under a limit."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sllm_tune.answer.measure import mean_loss
from sllm_tune.errors import JobFailed
from sllm_tune.recipe.resize import Fit
from sllm_tune.resize.cut import cut_model
from sllm_tune.resize.search import fit

LAYERS, NEURONS = 4, 128


@pytest.fixture(scope="module")
def trained(tiny_tokenizer: Any) -> tuple[Any, list[list[int]]]:
    """A model that has learned a few sentences, so that its parts differ in what they are worth."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    sentences = [
        "The tenant shall pay the rent.",
        "The landlord may inspect the premises.",
        "임차인은 차임을 지급한다.",
    ]
    texts = [tiny_tokenizer.encode(sentence) for sentence in sentences]
    steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        for ids in texts:
            row = torch.tensor([ids])
            model(input_ids=row, labels=row).loss.backward()
        steps.step()
        steps.zero_grad()
    return model.eval(), texts


def size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def used(texts: list[list[int]]) -> set[int]:
    return {token for ids in texts for token in ids}


def test_the_chosen_cut_is_under_the_limit_and_no_candidate_under_it_is_better(
    trained: Any, tiny_tokenizer: Any
) -> None:
    model, texts = trained
    limit = round(0.7 * size(model))
    cut, rows = fit(model, tiny_tokenizer, texts, texts, used(texts), Fit(kind="fit", max_parameters=limit))
    (chosen,) = [row for row in rows if row["chosen"]]
    assert size(cut_model(model, cut)) == chosen["parameters"] <= limit
    assert chosen["loss"] == min(row["loss"] for row in rows if row["parameters"] <= limit)
    assert rows[0]["parameters"] == size(model)


def test_each_single_method_is_among_the_candidates_at_the_limit(trained: Any, tiny_tokenizer: Any) -> None:
    model, texts = trained
    _, rows = fit(
        model, tiny_tokenizer, texts, texts, used(texts), Fit(kind="fit", max_parameters=round(0.6 * size(model)))
    )
    whole = rows[0]
    changed = [tuple(row[key] != whole[key] for key in ("layers", "intermediate_size", "tokens")) for row in rows]
    assert (True, False, False) in changed  # depth alone
    assert (False, True, False) in changed  # width alone
    assert (True, False, True) in changed or (False, False, True) in changed
    assert len(set(changed)) >= 4


def test_a_narrow_candidate_fills_the_limit(trained: Any, tiny_tokenizer: Any) -> None:
    model, texts = trained
    limit = round(0.6 * size(model))
    _, rows = fit(model, tiny_tokenizer, texts, texts, used(texts), Fit(kind="fit", max_parameters=limit))
    narrow = [row for row in rows if row["layers"] == LAYERS and row["intermediate_size"] < NEURONS]
    one_step = 3 * 32 * 32 * LAYERS  # 32 neurons more in every layer
    assert narrow
    assert all(limit - one_step < row["parameters"] <= limit for row in narrow)


def test_bytes_count_as_the_weights_are_stored(trained: Any, tiny_tokenizer: Any) -> None:
    model, texts = trained
    cut, _ = fit(
        model, tiny_tokenizer, texts, texts, used(texts), Fit(kind="fit", max_bytes=round(0.7 * 4 * size(model)))
    )
    assert size(cut_model(model, cut)) <= 0.7 * size(model)


def test_a_speed_is_reached_by_measurement(trained: Any, tiny_tokenizer: Any) -> None:
    model, texts = trained
    _, rows = fit(model, tiny_tokenizer, texts, texts * 10, used(texts), Fit(kind="fit", min_speedup=1.2))
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["tokens_per_second"] >= 1.2 * rows[0]["tokens_per_second"]


def test_the_whole_model_is_chosen_where_it_fits(trained: Any, tiny_tokenizer: Any) -> None:
    model, texts = trained
    cut, rows = fit(model, tiny_tokenizer, texts, texts, used(texts), Fit(kind="fit", max_parameters=2 * size(model)))
    assert mean_loss(cut_model(model, cut), texts if cut.tokens is None else _renumbered(texts, cut)) <= rows[0]["loss"]


def test_a_limit_that_nothing_meets_is_refused(trained: Any, tiny_tokenizer: Any) -> None:
    model, texts = trained
    with pytest.raises(
        JobFailed, match=r"none of the \d+ candidates meets the limit; the nearest have [\d,]+ parameters"
    ):
        fit(model, tiny_tokenizer, texts, texts, used(texts), Fit(kind="fit", max_parameters=100))


def _renumbered(texts: list[list[int]], cut: Any) -> list[list[int]]:
    place = {old: new for new, old in enumerate(cut.tokens)}
    return [[place[token] for token in ids] for ids in texts]
