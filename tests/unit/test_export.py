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

from sllm_tune.answer.items import samples_path
from sllm_tune.cli import main
from sllm_tune.deliver import half_made
from sllm_tune.deliver.export import export
from sllm_tune.deliver.gguf_model import to_gguf
from sllm_tune.errors import BadInput, JobFailed, ModelError
from sllm_tune.evaluate.schema import Results
from sllm_tune.model.checkpoint import readable_elsewhere
from sllm_tune.model.load import load_model, load_tokenizer
from sllm_tune.report import stage as reporting
from sllm_tune.runs.files import read_jsonl, write_jsonl
from sllm_tune.runs.folder import open_run
from sllm_tune.runs.stage import Making
from sllm_tune.smoke import FAMILIES
from sllm_tune.smoke import tiny_base as tiny_of
from sllm_tune.tasks.encode import Encoder

TEXTS = [
    "The tenant shall pay 1234 dollars.  Two  spaces\n\nand lines.",
    "임차인은 매월 초일에 지급한다.",
    "Don't; 3.14!",
]


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


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Mistral"])
def test_other_architectures_have_the_logits_of_their_checkpoint(
    name: str, tmp_path: Path, tiny_tokenizer: Any, llama: Any
):
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(tiny_tokenizer) + 5, "sliding_window": None}
    special = {"eos_token_id": tiny_tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, f"{name}Config")(initializer_range=0.2, **sizes, **special)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms of one and biases of nought would hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "checkpoint")
    tiny_tokenizer.save_pretrained(tmp_path / "checkpoint")
    to_gguf(tmp_path / "checkpoint", tmp_path / "model.gguf")
    file = llama(tmp_path / "model.gguf", threads=1, window=256)
    ids = list(range(3, 40))
    assert np.abs(engine_logits(file, ids) - model_logits(tmp_path / "checkpoint", ids)).max() < 0.15


def test_rotary_scaling_of_llama_3_is_exported(tiny_base: Path, tmp_path: Path, llama: Any):
    checkpoint = Path(shutil.copytree(tiny_base, tmp_path / "checkpoint"))
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    edit(checkpoint / "config.json", rope_parameters=rope)
    to_gguf(checkpoint, tmp_path / "model.gguf")
    ids = list(range(3, 120))
    got = engine_logits(llama(tmp_path / "model.gguf", threads=1, window=256), ids)
    assert np.abs(got - model_logits(checkpoint, ids)).max() < 0.1
    assert np.abs(got - model_logits(tiny_base, ids)).max() > 1  # it is not the unscaled one


def test_a_trimmed_vocabulary_exports(tiny_base: Path, tmp_path: Path, llama: Any):
    from sllm_tune.resize.cut import cut_checkpoint
    from sllm_tune.resize.tokenizer import write_tokenizer
    from sllm_tune.resize.vocabulary import trim_vocabulary

    tokenizer = load_tokenizer(str(tiny_base), section(tiny_base))
    cut = trim_vocabulary(tokenizer, tokenizer("The tenant shall pay the rent.")["input_ids"])
    cut_checkpoint(tiny_base, tmp_path / "trimmed", cut)
    write_tokenizer(tokenizer, cut, tmp_path / "trimmed")
    trimmed = load_tokenizer(str(tmp_path / "trimmed"), section(tmp_path / "trimmed"))
    assert len(trimmed) < len(tokenizer)
    to_gguf(tmp_path / "trimmed", tmp_path / "model.gguf")
    file = llama(tmp_path / "model.gguf", threads=1, window=256)
    for text in TEXTS:
        assert file.encode(text, add_special=False) == trimmed(text)["input_ids"]
    ids = trimmed(TEXTS[0])["input_ids"][:40]
    assert np.abs(engine_logits(file, ids) - model_logits(tmp_path / "trimmed", ids)).max() < 0.1


# --- parity


def test_an_export_answers_as_what_was_scored_and_says_how_fast_it_is(run: Path, tmp_path: Path, llama: Any):
    made = export(run, "gguf", tmp_path / "out", threads=1)
    assert made.name == "tiny-run-f16.gguf"
    report = json.loads(made.with_suffix(".json").read_text())
    task = report["tasks"]["clauses"]
    assert task["agreement"] >= 0.995
    assert task["n"] == 40
    assert task["prompts_alike"] == 1
    assert report["speed"]["bytes"] == made.stat().st_size
    for figure in ("load_s", "prompt_tokens_per_s", "generation_tokens_per_s", "resident_bytes", "threads"):
        assert report["speed"][figure] > 0
    assert left(tmp_path / "out") == ["tiny-run-f16.gguf", "tiny-run-f16.json"]
    assert made.stat().st_mode & 0o777 == 0o644  # a serving container runs as another user


def test_the_report_shows_what_was_exported_and_the_base_beside_it(copied: Path, tmp_path: Path, llama: Any):
    shutil.rmtree(copied / "formats", ignore_errors=True)  # of another test's exports
    with open_run(copied, "tiny run") as opened:
        given = reporting.inputs(opened)
        made = reporting.report(given, Making(opened, "report", given, opened.work("report", given.flat())))
        opened.commit("report", given.flat(), outputs=made, seed=1, record={})
    assert "Exported files" not in (copied / "report.md").read_text()
    whole = export(copied, "gguf", tmp_path / "out", threads=1)
    fewer = export(copied, "gguf", tmp_path / "out", quantize="Q8_0", threads=1)
    shown = (copied / "report.md").read_text().partition("## Exported files")[2].partition("##")[0]
    rows = [line for line in shown.splitlines() if line.startswith("| ")][2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "Base model, GGUF, f16",
        "Specialist, GGUF, f16",
        "Specialist, GGUF, Q8_0",
    ]
    results = Results.read(copied / "scores" / "results.json", "evaluate")
    scores = results.tasks["clauses"].scores
    assert f"{scores['base'].value:.3f}" in rows[0]
    assert "100.0 % alike" in rows[1]
    for row, file in zip(rows[1:], (whole, fewer), strict=True):
        assert f"{file.stat().st_size / 1e6:.1f} MB" in row
    page = (copied / "report.html").read_text()
    assert "Specialist, GGUF, Q8_0" in page
    with open_run(copied) as opened:  # it is what a run would make of these scores
        assert opened.why("report", reporting.inputs(opened).flat()) is None
    # other scores: what was held against the old ones is not shown beside them
    edit(copied / "scores" / "results.json", made_at="2026-11-02T10:00:00Z")
    with open_run(copied) as opened:
        assert [name for name in reporting.inputs(opened).file if "formats" in name] == []


def test_an_export_is_kept_where_the_report_cannot_show_it(
    copied: Path, tmp_path: Path, llama: Any, capsys: pytest.CaptureFixture[str]
):
    with open_run(copied, "tiny run"):  # somebody works in it
        made = export(copied, "gguf", tmp_path / "out", threads=1)
    assert made.is_file()
    assert "the report does not show it" in capsys.readouterr().err


def test_an_export_in_fewer_bits_is_smaller_and_answers_alike(run: Path, tmp_path: Path, llama: Any):
    whole = export(run, "gguf", tmp_path / "out", threads=1)
    made = export(run, "gguf", tmp_path / "out", quantize="Q8_0", threads=1)
    assert made.stat().st_size < whole.stat().st_size
    assert json.loads(made.with_suffix(".json").read_text())["tasks"]["clauses"]["agreement"] >= 0.995


def test_scales_that_know_the_channels_in_use_lose_less_there(run: Path, tmp_path: Path, llama: Any):
    import gguf
    from gguf.quants import dequantize

    from sllm_tune.deliver.quantize import importance_of, quantize

    tokenizer = load_tokenizer(str(run / "merged"), section(run / "merged"))
    weights = importance_of(run / "merged", [tokenizer(text)["input_ids"] for text in TEXTS])
    to_gguf(run / "merged", tmp_path / "whole.gguf")
    quantize(tmp_path / "whole.gguf", "Q4_K_M", tmp_path / "plain.gguf")
    quantize(tmp_path / "whole.gguf", "Q4_K_M", tmp_path / "weighed.gguf", weights)
    names = ("whole", "plain", "weighed")
    held = {name: {t.name: t for t in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors} for name in names}

    def loss(name: str) -> float:
        total = 0.0
        for key, weight in weights.items():
            tensor = held[name][key]
            error = dequantize(tensor.data, tensor.tensor_type) - held["whole"][key].data.astype(np.float32)
            total += float((np.square(error) * weight).sum())
        return total

    assert weights.keys() <= held["whole"].keys()
    assert loss("weighed") < 0.95 * loss("plain")


def refused(run: Path, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(JobFailed) as caught:
        export(run, "gguf", tmp_path / "out", threads=1, **options)
    assert left(tmp_path / "out") == []
    return str(caught.value)


def test_an_export_without_the_adapter_is_refused(
    run: Path, tiny_base: Path, tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
):
    def drops(_: Path, out: Path, name: str) -> None:
        to_gguf(tiny_base, out, name)

    monkeypatch.setattr("sllm_tune.deliver.export.to_gguf", drops)
    said = refused(run, tmp_path)
    assert "of 40 items; 99.5% are needed" in said
    assert "more than a near tie" in said


def spoiled(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]) -> None:
    """Has the GGUF file made of a spoiled copy of the run's `merged/`."""

    def made(_: Path, out: Path, name: str) -> None:
        checkpoint = Path(shutil.copytree(run / "merged", tmp_path / "spoiled"))
        spoil(checkpoint)
        to_gguf(checkpoint, out, name)

    monkeypatch.setattr("sllm_tune.deliver.export.to_gguf", made)


def test_an_export_with_another_template_is_refused(
    run: Path, tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
):
    def spoil(checkpoint: Path) -> None:
        file = checkpoint / "chat_template.jinja"
        file.write_text(file.read_text().replace("\n{% endfor %}", "{% endfor %}"))

    spoiled(run, tmp_path, monkeypatch, spoil)
    assert "100.0% of the prompts have other tokens: another template" in refused(run, tmp_path)


def test_an_export_with_another_stop_token_is_refused(
    run: Path, tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
):
    spoiled(run, tmp_path, monkeypatch, lambda checkpoint: edit(checkpoint / "generation_config.json", eos_token_id=0))
    said = refused(run, tmp_path)
    assert "taught to end with '<|im_end|>', and the file ends them at '<|endoftext|>'" in said


def test_near_ties_are_listed_and_others_refused():
    from sllm_tune.deliver.parity import BARS, Difference, TaskParity, refusals_of

    def task(*margins: float, n: int = 1000, accuracy: float = 0.9) -> TaskParity:
        ids = [f"{i:016x}" for i in range(len(margins))]
        differences = [
            Difference(id=i, scored=0, exported=1, margin_nats=nats) for i, nats in zip(ids, margins, strict=True)
        ]
        figures = {"n": n, "agreement": 1 - len(margins) / n, "accuracy": accuracy, "prompts_alike": 1.0}
        return TaskParity(**figures, scored_accuracy=0.9, scored_ci95=(0.88, 0.92), differences=differences)

    assert refusals_of("law", task(0.1, 0.2), BARS["f16"]) == []
    assert "the worst, 0000000000000001, by 3.00" in refusals_of("law", task(0.1, 3.0), BARS["f16"])[0]
    assert "outside of the interval 0.8800 to 0.9200" in refusals_of("law", task(accuracy=0.7), BARS["f16"])[0]
    assert "agrees on 99.00% of 100 items" in refusals_of("law", task(0.1, n=100), BARS["f16"])[0]
    assert "their texts were not kept" in refusals_of("law", task(float("inf")), BARS["f16"])[0]


@pytest.mark.parametrize("answers", ["kept", "not kept"])
def test_a_near_tie_between_choices_is_known_as_one_though_no_answer_was_kept(
    copied: Path, tmp_path: Path, answers: str, llama: Any
):
    file = samples_path(copied / "scores", "clauses", "specialised")
    rows = read_jsonl(file)
    # as if the specialist had answered one item otherwise than the file will
    changed = next(row for row in rows if row["score"] == 0)
    changed["score"], changed["prediction"] = 1.0, int(changed["id"], 16) % 5
    if answers == "not kept":
        rows = [{**row, "prediction": None} for row in rows]
    write_jsonl(file, rows)
    said = refused(copied, tmp_path)
    far = float(said.split("by ")[-1].split()[0].rstrip("."))
    assert f"the worst, {changed['id']}" in said
    assert far > 0.25


# --- OpenVINO


def test_an_openvino_folder_answers_as_what_was_scored_in_one_step_or_many(run: Path, tmp_path: Path):
    ov = pytest.importorskip("openvino")
    pytest.importorskip("openvino_tokenizers")
    made = export(run, "openvino", tmp_path / "out", threads=1)
    assert made.name == "tiny-run-openvino"
    report = json.loads((tmp_path / "out" / "tiny-run-openvino.json").read_text())
    assert report["tasks"]["clauses"]["agreement"] >= 0.995
    assert report["tasks"]["clauses"]["prompts_alike"] == 1
    assert report["speed"]["bytes"] > (made / "openvino_model.bin").stat().st_size
    # what others load: state, beams, tokenizer, and logits of the checkpoint that was scored
    core = ov.Core()
    names = {place.get_any_name() for place in core.read_model(made / "openvino_model.xml").inputs}
    assert names == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the processor has it
    request = core.compile_model(made / "openvino_model.xml", "CPU", exact).create_infer_request()
    ids = list(range(3, 23))
    found = []
    for start, end in ((0, 9), (9, 10), (10, 20)):
        asked = {"input_ids": [ids[start:end]] * 2, "attention_mask": [[1] * end] * 2}
        asked |= {"position_ids": [list(range(start, end))] * 2, "beam_idx": np.array([0, 0], dtype=np.int32)}
        if not start:
            asked["beam_idx"] = np.array([0, 1], dtype=np.int32)
        found.append(np.array(request.infer(asked)["logits"])[1])
    logits = np.concatenate(found)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    assert np.abs(logits - model_logits(run / "merged", ids)).max() < 0.1


def test_what_openvino_cannot_be_given_is_refused_by_name(run: Path, tmp_path: Path):
    pytest.importorskip("openvino")
    from sllm_tune.deliver.openvino_model import to_openvino

    with pytest.raises(BadInput, match="a kind of GGUF"):
        export(run, "openvino", tmp_path / "out", quantize="Q8_0")
    with pytest.raises(ModelError, match="a 'gemma3_text' with layers that do not see all of the text"):
        to_openvino(tiny_of("gemma3", TEXTS * 4), tmp_path / "out")
    assert left(tmp_path / "out") == []


# --- adapters


def test_an_adapter_in_llama_cpp_answers_as_the_merged_model(run: Path, tiny_base: Path, tmp_path: Path, llama: Any):
    made = export(run, "adapter-gguf", tmp_path / "out", base=tiny_base, threads=1)
    task = json.loads(made.with_suffix(".json").read_text())["tasks"]["clauses"]
    assert task["agreement"] >= 0.995
    assert left(tmp_path / "out") == [
        "tiny-run-adapter-f16.gguf",
        "tiny-run-adapter-f16.json",
        "tiny-run-base-f16.gguf",
    ]


def test_an_adapter_that_llama_cpp_cannot_put_on_is_refused(tiny_base: Path, tmp_path: Path):
    from sllm_tune.deliver.gguf_adapter import adapter_to_gguf

    adapter = random_adapter(tiny_base, tmp_path / "adapter", use_dora=True)
    with pytest.raises(ModelError, match="uses 'use_dora', which"):
        adapter_to_gguf(adapter, tiny_base, tmp_path / "adapter.gguf")


def test_an_adapter_of_another_base_is_refused(run: Path, tiny_base: Path, tmp_path: Path, llama: Any):
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    edit(other / "config.json", rms_norm_eps=1e-3)
    for kind in ("adapter", "adapter-gguf"):
        with pytest.raises(ModelError, match="trained on another base"):
            export(run, kind, tmp_path / "out", base=other)  # pyright: ignore[reportArgumentType]
    assert left(tmp_path / "out") == []


PLAIN = """\
import json, sys, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(".")
models = [AutoPeftModelForCausalLM.from_pretrained("."), AutoModelForCausalLM.from_pretrained("../merged")]
models.append(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "."))
messages = [{"role": "user", "content": "Is it binding?"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(json.dumps([model.eval().float()(**prompt).logits[0, -1].tolist() for model in models]))
print(json.dumps([[model.generation_config.eos_token_id, model.generation_config.do_sample] for model in models]))
"""


def test_folders_load_with_plain_peft_and_transformers_and_stop_where_taught(
    run: Path, tiny_base: Path, tmp_path: Path
):
    merged = export(run, "merged", tmp_path)
    adapter = export(run, "adapter", tmp_path, base=tiny_base)
    done = subprocess.run([sys.executable, "-c", PLAIN], cwd=adapter, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits, stops = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert np.abs(np.array(logits[0]) - np.array(logits[2])).max() < 1e-4
    assert np.abs(np.array(logits[0]) - np.array(logits[1])).max() < 0.2  # merged is rounded to bfloat16
    tokenizer = load_tokenizer(str(merged), section(merged))
    taught = Encoder(tokenizer, chat_template=True).stop_ids[-1]
    assert all((stop[0] if isinstance(stop, list) else stop) == taught and not draws for stop, draws in stops)
    assert str(tmp_path) not in (adapter / "adapter_config.json").read_text()


def test_older_readers_find_rope_theta_and_transformers_reads_the_same(tiny_base: Path, tmp_path: Path):
    from transformers import AutoConfig

    checkpoint = Path(shutil.copytree(tiny_base, tmp_path / "checkpoint"))
    rope = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
    edit(checkpoint / "config.json", rope_parameters=rope)
    before = AutoConfig.from_pretrained(checkpoint).rope_parameters
    readable_elsewhere(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert AutoConfig.from_pretrained(checkpoint).rope_parameters == before


# --- bad input


@pytest.mark.parametrize("name", ["../model", "./base", "pypi:a==1/b.gguf", "base", None])
def test_an_adapter_whose_base_is_on_no_hub_is_not_written_without_it(copied: Path, tmp_path: Path, name: str | None):
    edit(copied / "adapter" / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(ModelError, match=r"is on no hub, so it has to be written beside it\.\n.*--base"):
        export(copied, "adapter", tmp_path / "out")
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("format", ["merged", "gguf"])
def test_a_place_where_nothing_can_be_written_is_named(run: Path, tmp_path: Path, format: Any, llama: Any):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"/file/.*: nothing can be written there"):
        export(run, format, tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}'])
def test_results_that_are_damaged_or_of_another_version_are_refused(
    copied: Path, tmp_path: Path, text: str, llama: Any
):
    (copied / "scores" / "results.json").write_text(text)
    with pytest.raises(BadInput, match=r"results\.json: (cannot be read|schema is)"):
        export(copied, "gguf", tmp_path / "out")


def test_a_run_without_scores_is_refused(copied: Path, tmp_path: Path, llama: Any):
    shutil.rmtree(copied / "scores")
    with pytest.raises(BadInput, match="no scores in it, so this run is not finished"):
        export(copied, "gguf", tmp_path / "out")


def test_an_architecture_that_is_not_exported_is_refused_by_name(copied: Path, tmp_path: Path):
    edit(copied / "merged" / "config.json", architectures=["FalconForCausalLM"])
    with pytest.raises(ModelError, match="a 'FalconForCausalLM' is not exported to GGUF"):
        to_gguf(copied / "merged", tmp_path / "out" / "model.gguf")
    assert left(tmp_path / "out") == []


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(copied: Path, tmp_path: Path):
    file = copied / "merged" / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Whitespace"}, definition["pre_tokenizer"]],
    }
    file.write_text(json.dumps(definition))
    with pytest.raises(ModelError, match="how this tokenizer cuts text into words"):
        to_gguf(copied / "merged", tmp_path / "model.gguf")
    assert left(tmp_path) == sorted(left(tmp_path))
    assert not (tmp_path / "model.gguf").exists()


def test_a_full_disk_is_said_before_and_while_writing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(half_made.shutil, "copyfile", full)
        with pytest.raises(JobFailed, match="no room on the disk"):
            export(run, "merged", tmp_path / "out")
    assert left(tmp_path / "out") == []
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(half_made.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(JobFailed, match=r"no room on the disk; \d+ MB are needed"):
        to_gguf(run / "merged", tmp_path / "model.gguf")
    assert left(tmp_path) == ["out"]


def test_what_is_there_already_stays(run: Path, tmp_path: Path):
    made = export(run, "merged", tmp_path)
    before = left(made)
    with pytest.raises(BadInput, match="there is something already"):
        export(run, "merged", tmp_path)
    assert left(made) == before


def test_the_command_writes_a_folder_or_says_why_not(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "merged", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "merged")
    assert (out / "merged" / "model.safetensors").exists()
    assert main(["export", str(run), "--format", "onnx", "--out", str(out)]) == 2
    assert "'onnx' is none of" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert [path.name for path in out.iterdir()] == ["merged"]


def test_a_missing_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(BadInput, match=r"pip install 'sllm-tune\[export\]'"):
        export(run, "gguf", tmp_path / "out")


def test_unknown_formats_and_kinds_are_named(run: Path, tmp_path: Path):
    with pytest.raises(BadInput, match="did you mean 'Q4_K_M'"):
        export(run, "gguf", tmp_path, quantize="Q4_KM")
    with pytest.raises(BadInput, match="--format: 'gguff' is none of"):
        export(run, "gguff", tmp_path)  # pyright: ignore[reportArgumentType]
