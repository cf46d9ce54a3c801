"""Fit: search depth, width and vocabulary together for the best model under a limit, each candidate measured.

Importance is taken once, of the whole model; a candidate is then one cut of layers, neurons and tokens at a time. Each
limit is filled: with fewer layers their neurons stay, with more layers they are narrower. A candidate that uses one of
the three alone is among them wherever it reaches the limit, so none of these can be better than what is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from sllm_tune.answer.measure import Ids, timed_loss
from sllm_tune.errors import JobFailed
from sllm_tune.model.checkpoint import size_of
from sllm_tune.model.load import load_model
from sllm_tune.recipe.resize import Fit
from sllm_tune.resize.cut import Cut, cut_config, cut_model
from sllm_tune.resize.depth import block_influence
from sllm_tune.resize.source import Source
from sllm_tune.resize.vocabulary import trim_vocabulary
from sllm_tune.resize.width import importance

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LEAST = 0.25  # of the layers, and of the neurons of a layer, that any candidate keeps
DEPTHS = 10  # numbers of layers that are tried
WIDTHS = (1.0, 0.75, 0.5, 0.25)  # shares of the neurons that are tried where the limit is a speed
MULTIPLE = 32  # of neurons, which matrix products of all kinds of hardware like
HELD_OUT = 100  # texts that candidates are compared on
FIRST_TOKENS = (0.0, 1 / 3)  # shares of the vocabulary kept whether used or not; besides, all of it


def take(step: Fit, source: Source, out: Path) -> dict[str, JsonValue]:
    """Take the best cut that was found."""
    model, texts = load_model(str(source.folder), source.base), source.calibration
    held_out = source.validation[:HELD_OUT] or texts
    cut, rows = fit(model, source.tokenizer, texts, held_out, source.used, step)
    source.write(cut, out)
    return {"tried": [{**row} for row in rows]}


def fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Ids, held_out: Ids, used: Set[int], step: Fit
) -> tuple[Cut, list[dict[str, float]]]:
    """The cut under the limit with the least loss on held-out text, before any healing.

    Args:
        model: A causal language model of transformers, in memory.
        tokenizer: Its own.
        texts: Token ids of the field's own text, on which importance is measured.
        held_out: Other texts of the field, on which candidates are compared, by the tokens of the whole vocabulary.
        used: Token ids that a smaller vocabulary has to keep, those of `texts` and `held_out` among them.
        step: The limit.

    Returns:
        The cut, and a row for each candidate: `layers`, `intermediate_size`, `tokens`, `parameters`, `bytes`,
        `tokens_per_second`, `loss` (nats a token) and `chosen`; the first is the whole model.

    Raises:
        JobFailed: no candidate meets the limit.
    """
    order = _by_influence(model, texts)
    neurons = importance(model, texts)["neurons"].argsort(dim=1, descending=True).tolist()
    vocabularies = [Cut(), *(_trimmed(tokenizer, used, share, model.config.vocab_size) for share in FIRST_TOKENS)]
    rows = [_measured(model, Cut(), held_out)]
    cuts: list[Cut] = [Cut()]
    for shape in _shapes(model.config, vocabularies, step, rows[0]["bytes"] / rows[0]["parameters"]):
        layers, width, vocabulary = shape
        cut = Cut(
            layers=sorted(order[:layers]) if layers < len(order) else None,
            neurons=[sorted(row[:width]) for row in neurons] if width < len(neurons[0]) else None,
            tokens=vocabulary.tokens,
        )
        cuts.append(cut)
        rows.append(_measured(model, cut, held_out))
    within = [number for number, row in enumerate(rows) if _meets(row, rows[0], step)]
    if not within:
        raise JobFailed(
            f"fit: none of the {len(rows) - 1} candidates meets the limit; the nearest have "
            f"{min(row['parameters'] for row in rows):,} parameters, {min(row['bytes'] for row in rows):,} bytes, and "
            f"{max(row['tokens_per_second'] for row in rows) / rows[0]['tokens_per_second']:.2f} times the speed."
        )
    best = min(within, key=lambda number: rows[number]["loss"])
    return cuts[best], [{**row, "chosen": number == best} for number, row in enumerate(rows)]


def _by_influence(model: PreTrainedModel, texts: Ids) -> list[int]:
    scores = block_influence(model, texts)
    return sorted(range(len(scores)), key=lambda layer: -scores[layer])


def _trimmed(tokenizer: PreTrainedTokenizerBase, used: Set[int], share: float, rows: int) -> Cut:
    return trim_vocabulary(tokenizer, used, keep_first=round(share * rows), rows=rows)


def _shapes(
    config: PreTrainedConfig, vocabularies: Sequence[Cut], step: Fit, bytes_each: float
) -> Iterator[tuple[int, int, Cut]]:
    """Layers, neurons a layer and vocabulary of each candidate."""
    count, wide = int(config.num_hidden_layers), int(config.intermediate_size)
    depths = sorted({round(count * (1 - (1 - LEAST) * i / (DEPTHS - 1))) for i in range(DEPTHS)}, reverse=True)
    cap = step.max_parameters or (math.floor(step.max_bytes / bytes_each) if step.max_bytes else None)
    for vocabulary in vocabularies:
        if cap is None:
            shares = {
                max(MULTIPLE, int(wide * share) // MULTIPLE * MULTIPLE) if share < 1 else wide for share in WIDTHS
            }
            yield from ((layers, width, vocabulary) for layers in depths for width in sorted(shares, reverse=True))
            continue
        # By vocabulary, the deepest model of whole width that fits, and narrower ones of each depth above it.
        whole = next((n for n in range(count, 0, -1) if _parameters(config, n, wide, vocabulary) <= cap), 0)
        for layers in sorted({*(depth for depth in depths if depth > whole), whole}, reverse=True):
            width = wide if layers == whole else _widest(config, layers, vocabulary, cap)
            if layers >= LEAST * count and width >= LEAST * wide:
                yield layers, width, vocabulary


def _widest(config: PreTrainedConfig, layers: int, vocabulary: Cut, cap: int) -> int:
    """The most neurons a layer under the cap; parameters grow linearly with them."""
    one = _parameters(config, layers, MULTIPLE, vocabulary)
    each = _parameters(config, layers, 2 * MULTIPLE, vocabulary) - one
    return max(0, MULTIPLE * (1 + (cap - one) // each))


def _parameters(config: PreTrainedConfig, layers: int, width: int, vocabulary: Cut) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    shape = Cut(range(layers), [range(width)] * config.num_hidden_layers, tokens=vocabulary.tokens)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(cut_config(config, shape))
    return size_of(made)["parameters"]


def _measured(model: PreTrainedModel, cut: Cut, held_out: Ids) -> dict[str, float]:
    made = cut_model(model, cut) if cut != Cut() else model
    place = cut.token_places()
    texts = held_out if cut.tokens is None else [[place[token] for token in ids] for ids in held_out]
    loss, tokens_per_second = timed_loss(made, texts)
    return {
        "layers": made.config.num_hidden_layers,
        "intermediate_size": made.config.intermediate_size,
        "tokens": made.config.vocab_size,
        **size_of(made),
        "tokens_per_second": tokens_per_second,
        "loss": loss,
    }


def _meets(row: dict[str, float], whole: dict[str, float], step: Fit) -> bool:
    if step.max_parameters is not None:
        return row["parameters"] <= step.max_parameters
    if step.max_bytes is not None:
        return row["bytes"] <= step.max_bytes
    assert step.min_speedup is not None
    return row["tokens_per_second"] >= step.min_speedup * whole["tokens_per_second"]
