"""The packed scorer against lm-eval's own backend: same answers, fewer tokens through the model."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sllm_tune.answer import local as scorer
from sllm_tune.answer.local import PackedLM, Request, lay_out, pack
from sllm_tune.errors import ModelError

VOCABULARY = 420
WINDOW = 24
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SIZES: dict[str, Any] = {
    **COMMON,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 256}


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**GROUPED))


def qwen() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**GROUPED))


def gemma() -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=WINDOW, layer_types=kinds))


def gpt_neox() -> Any:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, max_position_embeddings=256))


def bloom() -> Any:
    return BloomForCausalLM(BloomConfig(n_layer=2, n_head=4, **COMMON))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(num_hidden_layers=2, **COMMON))


def leaky(row: scorer.Row) -> Any:
    """As `lay_out`, but every branch sees those before it."""
    tokens, positions, sees = lay_out(row)
    return tokens, positions, torch.ones_like(sees).tril()


@pytest.fixture
def packed(tiny_tokenizer: Any) -> Callable[..., PackedLM]:
    def make(architecture: Callable[[], Any], batch_size: int = 4) -> PackedLM:
        torch.manual_seed(0)
        return PackedLM(architecture().eval(), tiny_tokenizer, batch_size, chat_template=True)

    return make


def requests_of(items: list[tuple[list[int], list[list[int]]]]) -> list[Request]:
    return [(("", ""), context, choice) for context, choices in items for choice in choices]


def some_ids(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCABULARY), k=length)


def questions(shared: int = 0) -> list[Request]:
    """Contexts of many lengths, the first `shared` tokens the same, with choices of 1 to 5 tokens."""
    prefix = some_ids(0, shared)
    items = []
    for n in range(7):
        stem = some_ids(n, 2)  # what all choices of a question begin with
        choices = [stem + some_ids(100 + 10 * n + k, 1 + (n + k) % 3) for k in range(3)]
        items.append((prefix + some_ids(50 + n, 3 + 2 * n), choices))
    return requests_of(items)


def count_tokens(lm: Any) -> Callable[[], int]:
    """The tokens that go through the model from here on, padding included."""
    seen: list[int] = []

    def count(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append((args[0] if args else options["input_ids"]).numel())

    lm.model.register_forward_pre_hook(count, with_kwargs=True)
    return lambda: sum(seen)


def assert_like_the_harness(lm: PackedLM, requests: list[Request]) -> None:
    ours = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    theirs = HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    spread = max(score for score, _ in theirs) - min(score for score, _ in theirs)
    assert spread > 1  # else everything is equal to everything


@pytest.mark.parametrize("architecture", [llama, qwen, gemma, gpt_neox])
@pytest.mark.parametrize("shared", [0, 4])
def test_packed_answers_equal_the_harness(packed: Callable[..., PackedLM], architecture: Any, shared: int):
    lm = packed(architecture)
    assert lm.packs
    assert lm.model.dtype == torch.float32
    fits = [request for request in questions(shared) if len(request[1]) < WINDOW - shared - 8]
    assert len({tuple(request[1]) for request in fits}) >= 3
    assert_like_the_harness(lm, fits)


@pytest.mark.parametrize("architecture", [llama, qwen, gemma, gpt_neox])
def test_in_fewer_bits_rounding_does_not_keep_a_model_from_being_packed(
    packed: Callable[..., PackedLM], architecture: Any, monkeypatch: pytest.MonkeyPatch
):
    real = HFLM._loglikelihood_tokens

    def rounded(*args: Any, **options: Any) -> Any:
        return [(score + 0.7, greedy) for score, greedy in real(*args, **options)]  # as met with a trained model

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", rounded)
    assert packed(lambda: architecture().to(torch.bfloat16)).packs
    assert not packed(architecture).packs


@pytest.mark.parametrize("architecture", [bloom, mamba])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_fewer_bits_too_a_model_that_cannot_be_packed_is_found_out(
    packed: Callable[..., PackedLM], architecture: Any, dtype: torch.dtype
):
    assert not packed(lambda: architecture().to(dtype)).packs


def test_in_fewer_bits_too_branches_that_see_each_other_are_noticed(
    packed: Callable[..., PackedLM], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scorer, "lay_out", leaky)
    assert not packed(lambda: llama().to(torch.bfloat16)).packs


def test_in_fewer_bits_too_a_model_that_ignores_positions_is_noticed(packed: Callable[..., PackedLM]):
    def deaf() -> Any:
        model = llama().to(torch.bfloat16)
        real = model.forward
        model.forward = lambda *args, position_ids=None, **options: real(*args, **options)
        return model

    assert not packed(deaf).packs


@pytest.mark.parametrize("architecture", [bloom, mamba])
def test_a_model_that_cannot_be_packed_is_scored_by_the_harness(packed: Callable[..., PackedLM], architecture: Any):
    lm = packed(architecture)
    assert not lm.packs
    assert_like_the_harness(lm, questions(shared=4))


def test_rows_longer_than_the_sliding_window_are_scored_by_the_harness(packed: Callable[..., PackedLM]):
    lm = packed(gemma)
    requests = questions(shared=16)
    assert lm.packs
    assert max(row.length for row in pack(requests)) > WINDOW
    assert_like_the_harness(lm, requests)
    # Packed all the same, they would be wrong: the tree mask knows nothing of a window.
    packed_anyway = lm._score(pack(requests), len(requests), disable_tqdm=True)
    theirs = HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)
    assert max(abs(a[0] - b[0]) for a, b in zip(packed_anyway, theirs, strict=True)) > 1e-2


def test_rows_longer_than_the_context_of_the_model_are_scored_by_the_harness(
    packed: Callable[..., PackedLM], monkeypatch: pytest.MonkeyPatch
):
    lm = packed(llama)
    monkeypatch.setattr(lm, "_score", lambda *_, **__: pytest.fail("was packed"))
    assert lm.max_length == 256
    # Each choice fits, all of them in one row do not.
    requests = requests_of([(some_ids(1, 150), [some_ids(n, 60) for n in (2, 3, 4)])])
    assert_like_the_harness(lm, requests)


def test_fewer_tokens_go_through_the_model(packed: Callable[..., PackedLM]):
    requests = requests_of([(some_ids(n, 40), [some_ids(9 * n + k, 4) for k in range(4)]) for n in range(8)])
    lm = packed(llama)
    ours = count_tokens(lm)
    lm._loglikelihood_tokens(requests, disable_tqdm=True)
    plain = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    before = ours()
    HFLM._loglikelihood_tokens(plain, requests, disable_tqdm=True)
    assert before == 8 * 64  # 40 + 4 x 3, padded to 64
    assert ours() - before == 8 * 4 * 43


def test_what_all_contexts_share_goes_through_the_model_once(packed: Callable[..., PackedLM]):
    shared = some_ids(0, 100)
    requests = requests_of([(shared + some_ids(n, 5), [[7], [8]]) for n in range(1, 9)])
    lm = packed(llama, batch_size=8)
    assert_like_the_harness(lm, requests)
    tokens = count_tokens(lm)
    lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert tokens() == 100 + 8 * 16


def test_choices_that_differ_in_one_token_go_through_as_the_harness_sends_them(packed: Callable[..., PackedLM]):
    requests = requests_of([(some_ids(n, 20 + n), [[9, 5], [9, 6], [9, 7]]) for n in range(1, 9)])
    lm = packed(llama, batch_size=8)
    assert lm.packs
    given: list[dict[str, Any]] = []
    lm.model.register_forward_pre_hook(lambda _, __, options: given.append(options), with_kwargs=True)
    tokens = count_tokens(lm)
    lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert tokens() == 8 * 29  # one row a context, not one a choice: 28 and the token that the choices share
    assert [options.keys() & {"attention_mask", "position_ids", "past_key_values"} for options in given] == [set()]
    assert_like_the_harness(lm, requests)


CONTEXT = some_ids(1, 9)


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([(CONTEXT, [[5, 6], [5, 6, 7], [5]])], id="one choice is the beginning of another"),
        pytest.param([(CONTEXT, [[5], [6], [7]])], id="choices of one token"),
        pytest.param([(CONTEXT, [[5, 6], [5, 6]])], id="the same choice twice"),
        pytest.param([(CONTEXT, [[5, 6, 7]])], id="one choice"),
        pytest.param([([5], [[6, 7], [8]]), ([5], [[9], [10, 11]])], id="contexts of one token"),
        pytest.param([(CONTEXT, [[5], [6]]), (CONTEXT[:4], [[7, 8], [9]])], id="one context begins another"),
        pytest.param([(CONTEXT, [CONTEXT, CONTEXT[::-1]])], id="a choice that repeats the context"),
    ],
)
def test_choices_of_any_shape_are_scored_like_the_harness(packed: Callable[..., PackedLM], items: Any):
    lm = packed(llama)
    assert lm.packs
    requests = requests_of(items)
    ours = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    theirs = HFLM._loglikelihood_tokens(lm, requests, disable_tqdm=True)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_a_choice_that_the_model_would_write_itself_is_marked_greedy(packed: Callable[..., PackedLM]):
    lm = packed(llama)
    written = list(CONTEXT)
    for _ in range(3):
        written.append(int(lm.model(torch.tensor([written])).logits[0, -1].argmax()))
    greedy = written[len(CONTEXT) :]
    answers = lm._loglikelihood_tokens(requests_of([(CONTEXT, [greedy, [*greedy[:2], 5]])]), disable_tqdm=True)
    assert [is_greedy for _, is_greedy in answers] == [True, False]


def test_the_batch_size_changes_no_answer(packed: Callable[..., PackedLM]):
    requests = questions(shared=3)
    one, eight = (
        [score for score, _ in packed(llama, size)._loglikelihood_tokens(requests, disable_tqdm=True)]
        for size in (1, 8)
    )
    assert one == pytest.approx(eight, abs=1e-4)


def test_an_adapter_is_scored_through_its_base(packed: Callable[..., PackedLM]):
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(llama(), config)

    lm = packed(adapted)
    assert lm.packs
    assert_like_the_harness(lm, questions())


def test_branches_that_see_each_other_are_noticed(packed: Callable[..., PackedLM], monkeypatch: pytest.MonkeyPatch):
    lm = packed(llama)
    monkeypatch.setattr(scorer, "lay_out", leaky)
    assert not packed(llama).packs  # the probe sees it
    assert lm.packs
    with pytest.raises(AssertionError):
        assert_like_the_harness(lm, questions())


def test_branches_at_wrong_positions_are_noticed(packed: Callable[..., PackedLM], monkeypatch: pytest.MonkeyPatch):
    def shifted(row: scorer.Row) -> Any:
        tokens, _, sees = lay_out(row)
        return tokens, torch.arange(len(tokens)), sees

    lm = packed(llama)
    monkeypatch.setattr(scorer, "lay_out", shifted)
    assert not packed(llama).packs
    with pytest.raises(AssertionError):
        assert_like_the_harness(lm, questions())


def test_a_row_is_the_context_what_choices_share_and_their_rests():
    (row,) = pack(requests_of([([1, 2, 3], [[4, 5, 6], [4, 7, 8, 9]])]))
    assert (row.trunk, row.branches, row.context_length, row.length) == ([1, 2, 3, 4], [[5, 6], [7, 8, 9]], 3, 7)
    tokens, positions, sees = lay_out(row)
    assert tokens.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert positions.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert sees.int().tolist()[4:] == [
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 0, 1, 1],
    ]


def saying(lm: PackedLM, words: list[int]) -> None:
    """Make the model answer any prompt with these tokens, over and over."""
    written = [0]

    def say(_: Any, __: Any, output: Any) -> Any:
        output.logits[:, -1, words[written[0] % len(words)]] = 1e4
        written[0] += 1
        return output

    lm.model.register_forward_hook(say)


def generated(lm: PackedLM, context: str, **options: Any) -> str:
    from lm_eval.api.instance import Instance

    asked = Instance("generate_until", {}, (context, {"until": ["</s>"], "max_gen_toks": 24, **options}), 0)
    return lm.generate_until([asked], disable_tqdm=True)[0]


def test_generation_ends_at_the_end_of_turn_although_the_base_ends_at_the_end_of_text(packed: Callable[..., PackedLM]):
    lm = packed(llama)
    assert lm.tokenizer.eos_token == "<|endoftext|>"
    words = lm.tokenizer.encode("approved<|im_end|>")
    saying(lm, words)
    assert generated(lm, lm.apply_chat_template([{"role": "user", "content": "Is it?"}])) == "approved"


def test_a_prompt_is_never_cut_to_make_room_for_an_answer(packed: Callable[..., PackedLM]):
    lm = packed(llama)
    saying(lm, [5])
    lengths: list[int] = []
    lm.model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    for tokens in (10, 250):
        context = lm.tokenizer.decode([7] * tokens)
        lengths.clear()
        generated(lm, context, max_gen_toks=20)
        assert lengths[0] == tokens == len(lm.tok_encode(context))
        assert len(lengths) == min(20, 256 - tokens)
    with pytest.raises(ModelError, match=r"an item of 257 tokens is longer than the base's window of 256; nothing was"):
        generated(lm, lm.tokenizer.decode([7] * 256))


def test_a_choice_that_does_not_fit_the_window_is_an_error(packed: Callable[..., PackedLM]):
    lm = packed(llama)
    fits, over = (
        requests_of([(some_ids(1, 200), [some_ids(2, 56)])]),
        requests_of([(some_ids(1, 200), [some_ids(2, 57)])]),
    )
    lm._loglikelihood_tokens(fits, disable_tqdm=True)
    with pytest.raises(ModelError, match="an item of 257 tokens is longer than the base's window of 256"):
        lm._loglikelihood_tokens(over, disable_tqdm=True)
