"""Smoke: the whole of a recipe in seconds, on a tiny random model of its architecture and a few rows written for that.

Nothing is downloaded. What a real run would trip over shows here: a task file that does not fit its rows, a chat
template that cannot be trained on, an adapter option that the architecture does not know. The figures mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sllm_tune.errors import DataError, RecipeError
from sllm_tune.recipe.data import LimitSection
from sllm_tune.recipe.recipe import Recipe
from sllm_tune.recipe.resize import Distill, Fit, PruneDepth, PruneWidth, Step, TrimVocabulary, UpscaleDepth
from sllm_tune.rows.read import read_rows
from sllm_tune.sources import cache_dir
from sllm_tune.wording import listed

LIMIT = LimitSection(train=24, validation=6, test=12)
LIMIT_GENERAL, LIMIT_INSTRUCTIONS, REPLIES, SHOTS = 6, 10, 20, 1
TRAINING = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "logging_steps": 1,
}
# Options that only an accelerator or a longer training has a use for.
LEFT_OUT = (
    *("use_cpu", "bf16", "fp16", "tf32", "optim", "use_liger_kernel", "torch_compile", "deepspeed", "fsdp"),
    *("fsdp_config", "eval_strategy", "eval_steps", "load_best_model_at_end", "dataloader_num_workers"),
)
LONGEST = 4096  # tokens of a row: so small a vocabulary needs several times the tokens that the real one needs
VOCABULARY = 1024
SIZE = {
    "hidden_size": 64,  # bitsandbytes quantises blocks of 64
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2 * LONGEST,
    "initializer_range": 0.2,  # at the usual 0.02 every answer is about as likely as every other
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}DEFAULT{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


class Family(NamedTuple):
    """How models of a family are built and spoken to. The templates are ours; what they do is what the family's does.

    The tokenizer puts `begin` in front of every text, as the family's does, whether or not the template writes it too.
    """

    config: str  # configuration class in transformers
    begin: str | None
    end: str  # of a text
    added: tuple[str, ...]  # the tokens that the template writes, besides
    template: str
    drops_space: bool = False  # white space after an added token is not a token, as with sentencepiece
    settings: dict[str, Any] = {}  # noqa: RUF012  read only


FAMILIES = {
    # A system message of its own where none is given.
    "smollm2": Family(
        "LlamaConfig",
        None,
        "<|endoftext|>",
        ("<|im_start|>", "<|im_end|>"),
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a small model that helps.<|im_end|>\n"
        "{% endif %}" + CHATML,
    ),
    # Template and tokenizer both write the begin token; white space around a message is cut off.
    "llama3": Family(
        "LlamaConfig",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        HEADERS.replace("DEFAULT", ""),
    ),
    # Roles are plain text, and nothing but the end of the text ends a turn.
    "solar": Family(
        "LlamaConfig",
        "<s>",
        "</s>",
        (),
        "{% for m in messages %}{{ '\n\n' if not loop.first }}### {{ m.role | capitalize }}:\n{{ m.content }}"
        "{% endfor %}{{ '\n\n### Assistant:\n' if add_generation_prompt }}",
    ),
    # As Llama 3, with a system message of its own where none is given.
    "midm": Family(
        "LlamaConfig",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        HEADERS.replace(
            "DEFAULT",
            "{% if messages[0].role != 'system' %}<|start_header_id|>system<|end_header_id|>\n\n"
            "사용자를 돕는 작은 모델이다.<|eot_id|>{% endif %}",
        ),
    ),
    # Headers swallow the line break after them; a finished conversation also ends the text.
    "phi3": Family(
        "Phi3Config",
        "<s>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        drops_space=True,
        settings={"num_key_value_heads": 4},
    ),
    # No system role: its text goes in front of the first question. Turns must alternate.
    "gemma3": Family(
        "Gemma3TextConfig",
        "<bos>",
        "<eos>",
        ("<start_of_turn>", "<end_of_turn>"),
        "{{ bos_token }}{% set system = messages[0].content ~ '\n\n' if messages[0].role == 'system' else '' %}"
        "{% for m in (messages[1:] if system else messages) %}"
        "{% if (m.role == 'user') != (loop.index0 is even) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ system if loop.first }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        settings={
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "num_key_value_heads": 1,
            "sliding_window": 512,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    # A block for tools and one for the system always come first, empty where there is nothing to say.
    "hyperclovax": Family(
        "LlamaConfig",
        None,
        "<|endoftext|>",
        ("<|im_start|>", "<|im_end|>", "<|endofturn|>"),
        "{% if messages[0].role != 'tool_list' %}<|im_start|>tool_list\n<|im_end|>\n"
        "{% if messages[0].role != 'system' %}<|im_start|>system\n<|im_end|>\n{% endif %}{% endif %}" + CHATML,
    ),
}


def smoke(recipe: Recipe) -> Recipe:
    """The recipe with a tiny random base, sample rows for every task, and a few steps and items of each.

    Everything else stays as the recipe says, quantisation and adapter included.

    Raises:
        RecipeError: the recipe does not name its base's family. DataError: a task has no sample rows.
    """
    family = recipe.base_model.family
    if family is None:
        raise RecipeError(
            "base_model.family: required for --smoke, which makes a tiny model of that architecture; "
            f"one of {listed(FAMILIES, 'or')}"
        )
    samples = {name: _samples(name, recipe.folder) for name in recipe.task_names}
    texts = [text for path in samples.values() for row in read_rows(path) for text in _texts(row)]
    base = {"path": str(tiny_base(family, texts)), "revision": None, "sha256": None, "trust_remote_code": False}
    data: dict[str, object] = {
        "source": {name: str(path) for name, path in samples.items()},
        "limit": LIMIT,
        "max_length": LONGEST,
        "allow_leaks": [*recipe.evaluate.domain, *recipe.evaluate.general],  # a few rows of one hand are much alike
    }
    if recipe.data.replay and recipe.data.replay.replies:
        data["replay"] = recipe.data.replay.model_copy(update={"replies": REPLIES})
    shots = min(SHOTS, recipe.evaluate.num_fewshot)
    made = recipe.model_copy(
        update={
            "name": f"{recipe.name}-smoke",
            "base_model": recipe.base_model.model_copy(update=base),
            "data": recipe.data.model_copy(update=data),
            "resize": [_tiny_step(step) for step in recipe.resize],
            "train": recipe.train.model_copy(update={"sft": _few_steps(recipe.train.sft)}),
            "evaluate": recipe.evaluate.model_copy(
                update={
                    "limit_general": LIMIT_GENERAL,
                    "limit_instructions": LIMIT_INSTRUCTIONS,
                    "num_fewshot": shots,
                    "gate": None,
                }
            ),
        }
    )
    made._smoke = True  # pyright: ignore[reportPrivateUsage]
    return made


def _few_steps(sft: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sft.items() if key not in LEFT_OUT} | TRAINING


def _tiny_step(step: Step) -> Step:
    """A step of a recipe, for a base of `SIZE`: every kind of cut, and never more than there is."""
    if isinstance(step, PruneDepth):
        return step.model_copy(update={"keep": 1})
    if isinstance(step, UpscaleDepth):
        return step.model_copy(update={"overlap": 1})
    if isinstance(step, TrimVocabulary):
        return step.model_copy(update={"keep_first": min(step.keep_first, VOCABULARY // 4)})
    if isinstance(step, PruneWidth):
        # Heads stay, because a family may have one group; and channels, which bitsandbytes wants in blocks of 64.
        return step.model_copy(update={"intermediate_size": 64, "num_attention_heads": None, "hidden_size": None})
    if isinstance(step, Distill):
        return step.model_copy(update={"sft": _few_steps(step.sft)})
    if isinstance(step, Fit):
        return Fit(kind="fit", max_parameters=150_000)
    return step


def _samples(task: str, folder: Path) -> Path:
    paths = [part / "samples" / f"{task}.jsonl" for part in (folder, folder.parent / "general")]
    for path in paths:
        if path.is_file():
            return path.resolve()
    raise DataError(
        f"task {task!r} has no sample rows for --smoke; looked for {' and '.join(map(str, paths))}.\n"
        "  Write a few rows there, with the columns that the task's own source has."
    )


def _texts(value: Any) -> Iterable[str]:
    """Every text in a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def tiny_base(family: str, texts: Sequence[str]) -> Path:
    """A folder with a random model of the family's architecture and a tokenizer made from `texts`, kept in the cache.

    The same family and texts give the same weights. Generation ends after one token, whichever it is: a random model
    would go on to the task's longest answer.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    made_of = json.dumps([FAMILIES[family], SIZE, VOCABULARY, list(texts), transformers.__version__])
    folder = cache_dir() / "smoke" / f"tiny-{family}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    tokenizer = tiny_tokenizer(FAMILIES[family], texts)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {**SIZE, **FAMILIES[family].settings, "vocab_size": len(tokenizer), **special}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(getattr(transformers, FAMILIES[family].config)(**sizes))
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.replace(scratch, folder)
    except OSError:
        if not folder.is_dir():  # another process may have finished first, which is as good
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def tiny_tokenizer(family: Family, texts: Sequence[str]) -> Any:
    """A byte-level BPE of `texts`, in which any text has tokens, with the family's special tokens and template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    begin, end = ([family.begin] if family.begin else []), [family.end]
    added = [AddedToken(token, rstrip=family.drops_space, special=True) for token in family.added]
    trained: Any = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[*end, *begin, *added],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if family.begin:
        token = (family.begin, trained.token_to_id(family.begin))
        trained.post_processor = processors.TemplateProcessing(single=f"{family.begin} $A", special_tokens=[token])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=family.begin,
        eos_token=family.end,
        pad_token=family.end,
        additional_special_tokens=added,
        chat_template=family.template,
    )
