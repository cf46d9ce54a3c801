import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from sllm_tune.errors import RecipeError
from sllm_tune.recipe import options
from sllm_tune.recipe import recipe as module
from sllm_tune.recipe import resize as steps
from sllm_tune.recipe.recipe import Recipe, load_recipe, recipe_schema
from sllm_tune.wording import nearest

SCHEMA_FILE = Path(__file__).parents[2] / "recipes" / "recipe.schema.json"
HASH = "0123456789abcdef" * 4
GOOD = """\
name: contracts
domain: legal
train:
  lora: {r: 16, lora_alpha: 32, target_modules: all-linear}
  sft:
    learning_rate: 1e-3
    num_train_epochs: 1
base_model:
  path: example/tiny
data:
  tasks: [privacy_qa]
  limit: {train: 2400}
evaluate:
  domain: [privacy_qa]
  general: [openbookqa, piqa]
  gate: {min_gain: 0.05, max_forgetting: 0.02}
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str | bytes, name: str = "recipe.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def message(*overrides: str, text: str | bytes = GOOD) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text), overrides)
    return str(caught.value)


def faults(*overrides: str, text: str = GOOD) -> list[str]:
    """The lines under the headline, without the remark that every override gets."""
    headline, *lines = message(*overrides, text=text).splitlines()
    assert headline == f"recipe.yaml: {len(lines)} problem{'s' * (len(lines) > 1)}"
    return [line.removeprefix("  ").removesuffix(" (from the command line)") for line in lines]


# --- what a right recipe gives


def test_importing_the_module_imports_no_torch():
    code = "import sys, sllm_tune.recipe.recipe; print({'torch', 'transformers', 'peft', 'trl'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCHEMA_FILE.parents[1])
    assert (run.stdout, run.stderr) == ("set()\n", "")


def test_resolved_recipe_holds_every_default_and_reads_back_as_the_same_recipe():
    recipe = load_recipe(write(GOOD))
    resolved = recipe.resolved()
    assert resolved == {
        "name": "contracts",
        "domain": "legal",
        "language": "en",
        "seed": 42,
        "base_model": {
            "path": "example/tiny",
            "revision": None,
            "sha256": None,
            "family": None,
            "chat_template": True,
            "quantization": None,
            "trust_remote_code": False,
        },
        "data": {
            "tasks": ["privacy_qa"],
            "source": {},
            "limit": {"train": 2400, "validation": None, "test": None},
            "max_length": 1024,
            "on_long": "refuse",
            "replay": None,
            "on_leak": "refuse",
            "allow_leaks": [],
            "pii": None,
            "leave_out": None,
        },
        "resize": [],
        "train": {
            "method": "sft",
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "sft": {"learning_rate": 0.001, "num_train_epochs": 1.0},
        },
        "evaluate": {
            "domain": ["privacy_qa"],
            "general": ["openbookqa", "piqa"],
            "limit_general": None,
            "num_fewshot": 5,
            "batch_size": 16,
            "usd_per_hour": None,
            "limit_instructions": None,
            "gate": {
                "min_gain": 0.05,
                "max_forgetting": 0.02,
                "max_instruction_loss": None,
                "max_label_collapse": None,
            },
        },
        "hardware": None,
        "report": {"show_items": True},
        "publish": {"repo": None, "format": "adapter", "private": True, "licence": None, "base_id": None},
    }
    again = load_recipe(write(json.dumps(resolved)))
    assert again == recipe
    assert json.dumps(again.resolved()) == json.dumps(resolved)


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.0e-3", ".1e-2", "+1e-3", "0.001", "'1e-3'"])
def test_every_way_to_write_a_learning_rate_is_read_as_a_float(written: str):
    assert load_recipe(write(GOOD.replace("1e-3", written))).train.sft["learning_rate"] == 0.001


def test_a_date_is_text_because_a_revision_may_look_like_one():
    assert load_recipe(write(GOOD), ["base_model.revision=2024-01-31"]).base_model.revision == "2024-01-31"


def test_a_byte_order_mark_is_not_part_of_the_first_key():
    assert load_recipe(write(b"\xef\xbb\xbf" + GOOD.encode())).name == "contracts"


def test_a_recipe_knows_the_folder_of_its_file_and_keeps_it_out_of_what_is_resolved():
    folder = Path("recipes") / "legal"
    folder.mkdir(parents=True)
    recipe = load_recipe(write(GOOD, str(folder / "contracts.yaml")))
    assert recipe.folder == folder
    assert recipe.resolved() == load_recipe(write(GOOD)).resolved()


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(write(GOOD)).seed = 1  # type: ignore[misc]


def test_qlora_options_are_taken_and_a_whole_number_becomes_the_float_the_library_demands():
    options = "{load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: bfloat16, llm_int8_threshold: 6}"
    quantization = load_recipe(write(GOOD), [f"base_model.quantization={options}"]).base_model.quantization
    assert quantization == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_threshold": 6.0,
    }


@pytest.mark.parametrize(
    ("limit", "read"),
    [
        ("max_parameters: 98000000", 98_000_000),
        ("max_parameters: 100M", 100_000_000),
        ("max_parameters: 1.1B", 1_100_000_000),
        ("max_bytes: 200MB", 200_000_000),
        ("max_bytes: 2.5GB", 2_500_000_000),
    ],
)
def test_a_limit_of_a_search_may_be_written_with_its_unit(limit: str, read: int):
    (step,) = load_recipe(write(GOOD), [f"resize=[{{kind: fit, {limit}}}]"]).resize
    assert getattr(step, limit.partition(":")[0]) == read


@pytest.mark.parametrize("value", ["true", "pissa", "olora", "orthogonal"])
def test_adapter_initialisations_that_peft_takes_are_taken(value: str):
    lora = load_recipe(write(GOOD), [f"train.lora.init_lora_weights={value}"]).train.lora
    assert lora["init_lora_weights"] == (True if value == "true" else value)


def test_a_nested_option_stays_a_plain_mapping():
    recipe = load_recipe(write(GOOD), ["train.lora={init_lora_weights: true, eva_config: {rho: 2.5}}"])
    assert recipe.resolved()["train"]["lora"] == {"init_lora_weights": True, "eva_config": {"rho": 2.5}}


@pytest.mark.parametrize("value", ["pissa_niter_0", "pissa_niter_2", "pissa_niter_16", "lora_ga", "eva", "corda"])
def test_adapter_initialisations_that_would_merge_or_train_something_else_are_refused(value: str):
    reason = "use pissa" if "niter" in value else "a pass over data before training, which sllm_tune does not make"
    (said,) = faults(f"train.lora.init_lora_weights={value}")
    assert said.startswith(f"train.lora.init_lora_weights: {value} is not taken: ")
    assert said.endswith(reason)


@pytest.mark.parametrize("option", ["label_smoothing_factor: 0.1", "loss_type: dft", "router_aux_loss_coef: 0.01"])
def test_healing_refuses_options_of_a_loss_that_it_does_not_have(option: str):
    name = option.partition(":")[0]
    step = "resize=[{kind: distill, sft: {%s}}]"
    assert faults(step % option) == [f"resize[0]: sft.{name} acts in a loss, and healing has its own"]
    assert load_recipe(write(GOOD), [step % "label_smoothing_factor: 0, loss_type: nll"])


def test_libraries_are_left_alone_where_a_recipe_gives_them_no_options():
    recipe = load_recipe(write(GOOD), ["train={}"])
    assert (recipe.train.method, recipe.train.lora, recipe.train.sft) == ("sft", {}, {})


def test_a_hash_is_kept_in_lower_case():
    overrides = ["base_model.path=pypi:example==1.0/model.gguf", f"base_model.sha256='{HASH.upper()}'"]
    assert load_recipe(write(GOOD), overrides).base_model.sha256 == HASH


# --- overrides


def test_overrides_reach_any_key_make_missing_mappings_and_the_last_one_wins():
    recipe = load_recipe(
        write(GOOD),
        ["train.sft.learning_rate=5e-4", "report.show_items=false", "data.tasks=[a, b]", "seed=1", "seed=2"],
    )
    assert recipe.train.sft == {"learning_rate": 0.0005, "num_train_epochs": 1.0}
    assert recipe.report.show_items is False
    assert recipe.data.tasks == ["a", "b"]
    assert recipe.seed == 2


def test_an_override_descends_into_null_and_keeps_what_follows_its_first_equals_sign():
    recipe = load_recipe(write(GOOD + "report:\n"), ["report.show_items=true", "data.source.piqa=a=b.jsonl"])
    assert recipe.report.show_items is True
    assert recipe.data.source == {"piqa": str(Path("a=b.jsonl").absolute())}


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("data.leave_out=gone/ids.txt", lambda recipe: recipe.data.leave_out),
        ("data.source.piqa=../here/rows.csv", lambda recipe: recipe.data.source["piqa"]),
        ("data.source={piqa: '*.jsonl'}", lambda recipe: recipe.data.source["piqa"]),
        ("data={tasks: [privacy_qa], source: {piqa: b}}", lambda recipe: recipe.data.source["piqa"]),
        ("base_model.path=./b", lambda recipe: recipe.base_model.path),
        ("base_model={path: models/b.gguf}", lambda recipe: recipe.base_model.path),
    ],
)
def test_a_path_that_is_typed_starts_at_the_working_folder(override: str, path: Callable[[Recipe], str]):
    written = override.partition("=")[2].rpartition(": ")[2].strip("{}'")
    assert path(load_recipe(write(GOOD), [override])) == os.path.abspath(written)


@pytest.mark.parametrize("given", ["pypi:a==1/b.jsonl", "/data/rows.jsonl", "~/rows.jsonl"])
def test_what_names_its_place_whole_stays_as_it_is_typed(given: str):
    recipe = load_recipe(write(GOOD), [f"data.source.piqa={given}", f"data.leave_out={given}", "base_model.path=org/m"])
    assert (recipe.data.source["piqa"], recipe.data.leave_out) == (given, given)
    assert recipe.base_model.path == "org/m"  # a model of the hub, whatever folders are here
    assert load_recipe(write(GOOD)).base_model.path == "example/tiny"


def test_an_override_changes_one_of_two_mappings_that_share_an_anchor():
    text = GOOD.replace("lora: {", "lora: {rank_pattern: &shared {piqa: a.jsonl}, ")
    text = text.replace("limit: {train: 2400}", "source: *shared")
    recipe = load_recipe(write(text), ["data.source.piqa=b.jsonl"])
    assert recipe.data.source == {"piqa": str(Path("b.jsonl").absolute())}
    assert recipe.train.lora["rank_pattern"] == {"piqa": "a.jsonl"}


def test_a_wrong_override_is_named_and_the_faults_of_the_file_are_reported_with_it():
    assert message("seed", "data..tasks=[a]", "base_model.path.x=1", "data={a", "seed={a: 1, a: 2}", "name=A") == (
        "recipe.yaml: 6 problems\n"
        "  override 'seed': write key.path=value\n"
        "  override 'data..tasks=[a]': write key.path=value\n"
        "  override 'base_model.path.x=1': base_model.path is not a mapping (got 'example/tiny')\n"
        "  override 'data={a': line 1, column 3: expected ',' or '}', but got '<stream end>'; "
        "look for a missing quote, bracket or colon there or on the line before\n"
        "  override 'seed={a: 1, a: 2}': line 1: key 'a' is on line 1 already; keep one of them\n"
        "  name: must be lower-case letters, digits, '.', '_' and '-', the first a letter or digit (got 'A') "
        "(from the command line)"
    )


# --- the form of the message


def test_all_faults_are_reported_at_once_in_the_order_of_the_file():
    text = GOOD.replace("lora_alpha", "lora_alhpa").replace("train: 2400", "train: -1")
    assert message(text=text) == (
        "recipe.yaml: 2 problems\n"
        "  train.lora.lora_alhpa: unknown key of peft.LoraConfig; did you mean 'lora_alpha'?\n"
        "  data.limit.train: must be greater than 0 (got -1)"
    )


def test_one_fault_is_one_problem_and_a_key_from_the_command_line_says_so():
    assert message("data.limit.train=0") == (
        "recipe.yaml: 1 problem\n  data.limit.train: must be greater than 0 (got 0) (from the command line)"
    )


def test_a_key_under_an_override_counts_as_given_by_it_and_its_siblings_do_not():
    assert message("data={task: [a]}", text=GOOD.replace("domain: legal", "domian: legal")) == (
        "recipe.yaml: 4 problems\n"
        "  domian: unknown key; did you mean 'domain'?\n"
        "  data.task: unknown key; did you mean 'tasks'? (from the command line)\n"
        "  data.tasks: required (from the command line)\n"
        "  domain: required"
    )


# --- files that cannot be read


def test_a_missing_file_offers_the_one_with_the_nearest_name():
    write(GOOD, "quickstart.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe("quikstart.yaml")
    assert str(caught.value) == "quikstart.yaml: no such file; did you mean 'quickstart.yaml'?"
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("nowhere") / "x.yaml")
    assert str(caught.value) == f"{Path('nowhere') / 'x.yaml'}: no such file"


def test_a_folder_is_not_a_recipe():
    Path("legal").mkdir()
    with pytest.raises(RecipeError) as caught:
        load_recipe("legal")
    assert str(caught.value) == f"legal: is a folder; name a recipe file, such as {Path('legal') / 'quickstart.yaml'}"


def test_a_file_that_the_system_refuses_says_why(monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    assert str(caught.value) == "recipe.yaml: cannot be read: Permission denied"


def test_a_file_in_another_encoding_names_the_byte():
    assert message(text="name: café\n".encode("latin-1")) == (
        "recipe.yaml: not UTF-8: byte 0xe9 at offset 9; save it as UTF-8"
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_says_what_a_recipe_holds(text: str):
    assert message(text=text) == (
        "recipe.yaml: empty; a recipe names at least name, domain, base_model, data, train and evaluate"
    )


def test_a_list_is_not_a_recipe():
    assert message(text="- a\n- b\n") == "recipe.yaml: must be a mapping, such as 'name: my-recipe' (got ['a', 'b'])"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: a: b\n",
            "line 1, column 8: mapping values are not allowed here; "
            "put text that holds ': ' in quotes, and indent the keys of a mapping alike",
        ),
        (
            "data:\n\ttasks: [a]\n",
            "line 2, column 1: found character '\\t' that cannot start any token; indent with spaces, not with tabs",
        ),
        (
            "data:\n  tasks: [a\nseed: 1\n",
            "line 3, column 5: expected ',' or ']', but got ':'; "
            "look for a missing quote, bracket or colon there or on the line before",
        ),
        (
            "name: a\n---\nname: b\n",
            "line 2, column 1: expected a single document in the stream, but found another document; "
            "take out the '---' line; a recipe is one document",
        ),
        (
            "name: *anchor\n",
            "line 1, column 7: found undefined alias 'anchor'; "
            "define it before with '&', or put text that starts with '*' in quotes",
        ),
        (
            "name: !!python/name:os.system a\n",
            "line 1, column 7: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/name:os.system'; take out the '!' tag; a recipe holds plain values",
        ),
        ("name: a\nseed: \x07\n", "line 2: character 0x7 is not allowed in YAML; take it out"),
        (
            "train:\n  lora: {rank_pattern: &a {x: *a}}\n",
            "line 2, column 24: a value is inside itself; take out the alias",
        ),
        (
            "name: !!binary aGVsbG8=\n",
            "cannot be kept as JSON (Object of type bytes is not JSON serializable); "
            "write text, numbers, true, false, null, lists and mappings, none inside itself",
        ),
    ],
)
def test_a_yaml_error_names_the_place_and_the_mend(text: str, said: str):
    assert message(text=text) == f"recipe.yaml: {said}"


def test_a_key_given_twice_names_both_lines_beside_the_other_faults():
    assert message(text=GOOD + "seed: 1\nsead: 1\nseed: 2\n") == (
        "recipe.yaml: 2 problems\n"
        "  line 19: key 'seed' is on line 17 already; keep one of them\n"
        "  sead: unknown key; did you mean 'seed'?"
    )


def test_a_merged_mapping_may_give_a_key_again():
    kwargs = "lr_scheduler_kwargs: {<<: *small, r: 4}"
    text = GOOD.replace("lora: {", "lora: &small {").replace("num_train_epochs: 1", kwargs)
    merged = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear"}
    assert load_recipe(write(text)).train.sft["lr_scheduler_kwargs"] == merged


# --- faults of our own keys


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=Contracts 2", "name: must be {name} (got 'Contracts 2')"),
        ("domain=../legal", "domain: must be {name} (got '../legal')"),
        ("name=2024", "name: must be text (got 2024); put it in quotes"),
        ("language=kr", "language: must be 'en' or 'ko' (got 'kr')"),
        ("seed=-1", "seed: must be at least 0 (got -1)"),
        ("seed=4294967296", "seed: must be less than 4294967296 (got 4294967296)"),
        ("seed=1.5", "seed: must be a whole number (got 1.5)"),
        ("seed='1'", "seed: must be a whole number (got '1')"),
        ("seed=true", "seed: must be a whole number (got true)"),
        ("seed=", "seed: must be a whole number (got null)"),
        ("resize=prune", "resize: must be a list, such as [a, b] (got 'prune')"),
        ("resize=[3]", "resize[0]: must be a mapping (got 3)"),
        ("resize=[{keep: 2}]", "resize[0].kind: required"),
        ("resize=[{kind: prune_dept}]", "resize[0].kind: unknown kind 'prune_dept'; did you mean 'prune_depth'?"),
        ("resize=[{kind: prune_depth}]", "resize[0].keep: required"),
        ("resize=[{kind: prune_depth, keep: 2, methd: loss}]", "resize[0].methd: unknown key; did you mean 'method'?"),
        ("resize=[{kind: prune_depth, keep: 0}]", "resize[0].keep: must be greater than 0 (got 0)"),
        (
            "resize=[{kind: prune_width}]",
            "resize[0]: needs intermediate_size, num_attention_heads or hidden_size",
        ),
        (
            "resize=[{kind: distill, share: 0, teacher_top_k: 8}]",
            "resize[0]: teacher_top_k needs a share above 0: no teacher is asked",
        ),
        (
            "resize=[{kind: fit, max_parameters: 7b}]",
            "resize[0].max_parameters: must be a whole number or one such as 100M (got '7b')",
        ),
        ("resize=[{kind: fit, max_bytes: 0MB}]", "resize[0].max_bytes: must be greater than 0 (got 0)"),
        ("base_model=a", "base_model: must be a mapping (got 'a')"),
        ("base_model.path=''", "base_model.path: must not be empty"),
        ("base_model.revision=1234567", "base_model.revision: must be text (got 1234567); put it in quotes"),
        ("base_model.sha256=abc", "base_model.sha256: must be 64 hexadecimal digits (got 'abc')"),
        (
            "base_model.path=pypi:example==1.0/model.gguf",
            "base_model.sha256: required for a pypi: path; record the SHA-256 of the wheel",
        ),
        ("base_model.chat_template=maybe", "base_model.chat_template: must be true or false (got 'maybe')"),
        ("base_model.quantization=nf4", "base_model.quantization: must be a mapping (got 'nf4')"),
        ("data.tasks=privacy_qa", "data.tasks: must be a list, such as [a, b] (got 'privacy_qa')"),
        ("data.tasks=[]", "data.tasks: must not be empty"),
        ("data.tasks=[a, 1]", "data.tasks[1]: must be text (got 1); put it in quotes"),
        ("data.tasks=[a, b, c, a, b]", "data.tasks: names 'a' and 'b' more than once"),
        ("data.max_length=0", "data.max_length: must be greater than 0 (got 0)"),
        ("data.limit={1: 2}", "data.limit[1]: a key must be text; put it in quotes"),
        ("data.source={1: x}", "data.source[1]: a key must be text; put it in quotes"),
        (
            "data.source={piqqa: x.jsonl}",
            "data.source: names 'piqqa', not among data.tasks, evaluate.domain and evaluate.general; "
            "did you mean 'piqa'?",
        ),
        (
            "data.source={zzz: x.jsonl, 0a: y.jsonl}",
            "data.source: names 'zzz' and '0a', not among data.tasks, evaluate.domain and evaluate.general",
        ),
        ("train.method=dpo", "train.method: must be 'sft' (got 'dpo')"),
        ("train.lora=16", "train.lora: must be a mapping (got 16)"),
        ("train.lora={1: 2}", "train.lora[1]: a key must be text; put it in quotes"),
        ("evaluate.domain=[]", "evaluate.domain: must not be empty"),
        ("evaluate.general=[a, a]", "evaluate.general: names 'a' more than once"),
        (
            "evaluate.general=[privacy_qa]",
            "evaluate.general: names 'privacy_qa', which evaluate.domain names too",
        ),
        ("evaluate.general=[]", "evaluate.gate.max_forgetting: needs at least one task in evaluate.general"),
        ("evaluate.limit_general=0", "evaluate.limit_general: must be greater than 0 (got 0)"),
        ("evaluate.num_fewshot=-1", "evaluate.num_fewshot: must be at least 0 (got -1)"),
        ("evaluate.batch_size=0", "evaluate.batch_size: must be greater than 0 (got 0)"),
        ("evaluate.usd_per_hour=-0.5", "evaluate.usd_per_hour: must be at least 0 (got -0.5)"),
        ("evaluate.usd_per_hour=.nan", "evaluate.usd_per_hour: must be a finite number (got nan)"),
        ("evaluate.gate={}", "evaluate.gate.min_gain: required"),
        ("evaluate.gate.min_gain=much", "evaluate.gate.min_gain: must be a number (got 'much')"),
        ("evaluate.gate.min_gian=1", "evaluate.gate.min_gian: unknown key; did you mean 'min_gain'?"),
        ("report=", "report: must be a mapping (got null)"),
        ("data.max_length=" + "a" * 70, "data.max_length: must be a whole number (got '" + "a" * 56 + "...)"),
    ],
)
def test_each_wrong_value_of_our_own_keys_says_what_is_wanted(override: str, said: str):
    name = "lower-case letters, digits, '.', '_' and '-', the first a letter or digit"
    assert faults(override) == [said.replace("{name}", name)]


def test_every_missing_key_is_required_by_name():
    assert faults(text="seed: 1\n") == [
        f"{key}: required" for key in ("name", "domain", "base_model", "data", "train", "evaluate")
    ]


# --- faults of the libraries' options


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sft.lerning_rate=1", "unknown key of trl.SFTConfig; did you mean 'learning_rate'?"),
        ("train.sft.zzz=1", "unknown key of trl.SFTConfig"),
        ("train.sft.warmup_ratio=0.1", "unknown key of trl.SFTConfig; use warmup_steps, which takes a fraction"),
        ("train.sft.max_seq_length=8", "unknown key of trl.SFTConfig; use data.max_length"),
        ("base_model.quantization.load_in_4bits=true", "{bnb}; did you mean 'load_in_4bit'?"),
        ("train.sft.learning_rate=abc", "must be a number (got 'abc')"),
        ("train.sft.learning_rate=true", "must be a number (got true)"),
        ("train.sft.learning_rate=", "must be a number (got null)"),
        ("train.sft.learning_rate=.inf", "must be a finite number (got inf)"),
        ("train.sft.learning_rate=0", "must be greater than 0 (got 0)"),
        ("train.sft.num_train_epochs=0", "must be greater than 0 (got 0)"),
        ("train.sft.max_steps=-1", "must be at least 1 (got -1)"),
        ("train.sft.per_device_train_batch_size=0", "must be at least 1 (got 0)"),
        ("train.sft.per_device_train_batch_size=1.5", "must be a whole number (got 1.5)"),
        ("train.sft.gradient_accumulation_steps=0", "must be at least 1 (got 0)"),
        ("train.sft.warmup_steps=-1", "must be at least 0 (got -1)"),
        ("train.sft.weight_decay=-0.1", "must be at least 0 (got -0.1)"),
        ("train.sft.save_steps=0", "must be greater than 0 (got 0)"),
        ("train.sft.save_steps=-1", "must be greater than 0 (got -1)"),
        ("train.sft.eval_steps=0", "must be greater than 0 (got 0)"),
        ("train.sft.eval_accumulation_steps=0", "must be at least 1 (got 0)"),
        ("train.sft.max_grad_norm=-1", "must be at least 0 (got -1)"),
        ("train.sft.adam_beta1=1.5", "must be less than 1 (got 1.5)"),
        ("train.sft.adam_beta2=1.0", "must be less than 1 (got 1.0)"),
        ("train.sft.adam_epsilon=0", "must be greater than 0 (got 0)"),
        ("train.sft.neftune_noise_alpha=-5", "must be at least 0 (got -5)"),
        ("train.sft.label_smoothing_factor=2", "must be less than 1 (got 2)"),
        ("train.sft.log_level=wraning", "unknown value 'wraning'; did you mean 'warning'?"),
        ("train.sft.train_sampling_strategy=sequentially", "unknown value 'sequentially'; did you mean 'sequential'?"),
        ("train.sft.use_cpu=perhaps", "must be true or false (got 'perhaps')"),
        ("train.sft.run_name=5", "must be text or null (got 5)"),
        ("train.sft.optim=adamw_torc", "unknown value 'adamw_torc'; did you mean 'adamw_torch'?"),
        ("train.sft.eval_strategy=x", "unknown value 'x'; one of 'no', 'steps' or 'epoch'"),
        ("train.lora.r=0", "must be at least 1 (got 0)"),
        ("train.lora.lora_alpha=0", "must be greater than 0 (got 0)"),
        ("train.lora.lora_dropout=1", "must be less than 1 (got 1)"),
        ("train.lora.lora_dropout=-0.1", "must be at least 0 (got -0.1)"),
        ("train.lora.bias=non", "must be 'all', 'lora_only' or 'none' (got 'non')"),
        ("train.lora.target_modules=[1]", "must be a list of text, text or null (got [1])"),
        ("train.lora.eva_config={roh: 2}", "unknown key 'roh'; did you mean 'rho'?"),
        ("base_model.quantization.llm_int8_threshold=high", "must be a number (got 'high')"),
    ],
)
def test_each_wrong_option_of_a_library_says_what_is_wanted(override: str, said: str):
    bnb = "unknown key of transformers.BitsAndBytesConfig"
    assert faults(override) == [f"{override.partition('=')[0]}: {said.replace('{bnb}', bnb)}"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("sft.output_dir", "checkpoints are kept in the run folder; choose it with --run-dir"),
        ("sft.seed", "use the recipe's seed"),
        ("sft.data_seed", "use the recipe's seed"),
        ("sft.max_length", "use data.max_length"),
        ("sft.dataset_text_field", "examples come from the task files, as prompt and answer"),
        ("sft.packing", "every example is a row of its own"),
        ("sft.eval_packing", "every example is a row of its own"),
        ("sft.completion_only_loss", "only answers are learned"),
        ("sft.assistant_only_loss", "only answers are learned"),
        ("sft.report_to", "figures go to train/metrics.jsonl and nowhere else"),
        ("sft.push_to_hub", "nothing is published"),
        ("sft.hub_token", "nothing is published, and a recipe is not a place for a secret"),
        ("sft.resume_from_checkpoint", "a run that was cut off goes on by itself when it is run again"),
        ("sft.save_strategy", "checkpoints are saved so that a run that was cut off can go on"),
        ("sft.trust_remote_code", "use base_model.trust_remote_code"),
        ("sft.chat_template_path", "use base_model.chat_template"),
        ("sft.model_init_kwargs", "use base_model"),
        ("sft.save_only_model", "a run that was cut off could not go on without the optimizer's state"),
        ("sft.ignore_data_skip", "a run that was cut off would go on with rows that it has seen"),
        ("sft.logging_nan_inf_filter", "a loss that is not a number ends the training"),
        ("sft.label_names", "the labels are the ids of the answers"),
        ("sft.do_train", "which stages are run is said by the command"),
        ("sft.do_eval", "which stages are run is said by the command"),
        ("sft.do_predict", "which stages are run is said by the command"),
        ("sft.padding_free", "every example is a row of its own"),
        (
            "lora.layer_replication",
            "the merged model would have other layers than its config.json; use resize: upscale_depth",
        ),
        ("lora.task_type", "the model is a causal language model"),
        ("lora.peft_type", "the adapter is LoRA"),
        ("lora.base_model_name_or_path", "use base_model.path"),
        ("lora.inference_mode", "an adapter is trained with it off and scored with it on"),
    ],
)
def test_keys_that_sllm_tune_decides_are_refused_with_the_reason(key: str, reason: str):
    assert faults(f"train.{key}=1") == [f"train.{key}: set by sllm_tune: {reason}"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "train.lora.layers_to_transform=[1]",
            "train.lora: `layers_to_transform` cannot be used when `target_modules` is a str",
        ),
        (
            "base_model.quantization={load_in_4bit: true, load_in_8bit: true}",
            "base_model.quantization: "
            "load_in_4bit and load_in_8bit are both True, but only one can be used at the same time",
        ),
        (
            "base_model.quantization={load_in_4bit: true, bnb_4bit_compute_dtype: bfloat17}",
            "base_model.quantization: module 'torch' has no attribute 'bfloat17'",
        ),
        (
            "base_model.quantization={load_in_4bit: true, bnb_4bit_quant_type: nf5}",
            "base_model.quantization: quantizes nothing; "
            "ask for load_in_8bit: true, or load_in_4bit: true with bnb_4bit_quant_type nf4 or fp4",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_the_words_of_the_library(override: str, said: str):
    assert faults(override) == [said]


def test_no_suggestion_leads_to_a_key_that_is_refused():
    assert faults("train.sft.packin=true") == ["train.sft.packin: unknown key of trl.SFTConfig"]


def test_an_annotation_that_pydantic_cannot_read_leaves_the_value_as_it_is():
    class Callback:
        pass

    assert options._check_value("callback", Callback, "anything") == "anything"
    assert options._check_value("callback", Callback | None, 3) == 3
    assert options._check_value("callback", "DefinedElsewhere", 3) == 3


# --- helpers


def test_nearest_offers_one_name_or_nothing():
    assert nearest("privacy_qq", ["piqa", "privacy_qa"]) == " did you mean 'privacy_qa'?"
    assert nearest("zzz", ["piqa", "privacy_qa"]) == ""
    assert nearest("piqa", []) == ""


def test_the_schema_for_editors_is_the_committed_one():
    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == text, (
        "json.dumps(recipe_schema(), indent=2, ensure_ascii=False) differs"
    )


def test_every_field_is_described_and_there_are_few():
    def fields_of(where: Any) -> list[Any]:
        sections = [value for value in vars(where).values() if isinstance(value, type) and issubclass(value, BaseModel)]
        return [field for section in sections for field in section.model_fields.values()]

    assert 30 < len(fields_of(module)) < 50
    assert len(fields_of(steps)) < 30  # of the steps of resize, each in its own section
    fields = fields_of(module) + fields_of(steps)
    assert all(field.description and field.description.endswith(".") for field in fields)
    schema = recipe_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seed"]["description"] == "Seed of splits, training and resampling."
