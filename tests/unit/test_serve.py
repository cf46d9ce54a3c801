"""Serve: what may be served together, and the command that an engine is started with."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported import finished_run

from sllm_tune.cli import main
from sllm_tune.deliver import serve as serving
from sllm_tune.deliver.front import Plan, command
from sllm_tune.deliver.serve import base_folder, base_names, read_specialists
from sllm_tune.deliver.vllm_server import vllm_command
from sllm_tune.errors import BadInput, ModelError
from sllm_tune.model.lineage import ADAPTER_FILE

REQUIRED = ["scores/results.json", "merged", "merged/generation_config.json", "adapter", "adapter/adapter_config.json"]


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return finished_run(tmp_path_factory.mktemp("law"), tiny_base, name="law")


@pytest.fixture
def copied(law: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the run under other names."""

    def copy(name: str) -> Path:
        folder = Path(shutil.copytree(law, tmp_path / name))
        edit(folder / "scores" / "results.json", name=name)
        return folder

    return copy


@pytest.fixture
def never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that were started would take this process's place."""

    def start(*arguments: object) -> None:
        raise AssertionError(f"started: {arguments}")

    monkeypatch.setattr(serving.os, "execv", start)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- what may be served together


def test_specialists_of_one_base_are_served_by_their_names_and_the_base_by_its_own(
    copied: Callable[[str], Path], tiny_base: Path
):
    found = read_specialists([copied("law"), copied("money")])
    assert [one.name for one in found] == ["law", "money"]
    assert [one.rank for one in found] == [4, 4]
    assert base_names(found) == ["tiny", "base"]
    assert base_folder(found[0], None) == tiny_base


def test_a_runs_own_base_is_called_after_the_run(copied: Callable[[str], Path], tiny_base: Path):
    run = copied("law")
    edit(run / "adapter" / ADAPTER_FILE, base="../model")
    shutil.copytree(tiny_base, run / "model")
    found = read_specialists([run])
    assert base_names(found) == ["law-base", "base"]
    assert base_folder(found[0], None) == run / "model"


def test_specialists_of_two_bases_are_refused_with_both_names(copied: Callable[[str], Path]):
    one, other = copied("law"), copied("money")
    edit(other / "adapter" / ADAPTER_FILE, base="another", base_sha256="1" * 64)
    with pytest.raises(BadInput, match=r"law and .*money: specialists of two bases, tiny \(.*\) and another \(1111"):
        read_specialists([one, other])


def test_two_of_one_name_are_refused(copied: Callable[[str], Path]):
    one, other = copied("law"), copied("money")
    edit(other / "scores" / "results.json", name="law")
    with pytest.raises(BadInput, match=r"law and .*money: both are called law"):
        read_specialists([one, other])


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_a_specialist_that_is_called_as_the_base_is_refused(name: str, copied: Callable[[str], Path]):
    with pytest.raises(BadInput, match=f"it is called {name}, as the base is"):
        base_names(read_specialists([copied(name)]))


@pytest.mark.parametrize("name", ["../law", "a=b", "Law", "law b", ""])
def test_a_name_that_no_recipe_has_is_refused(name: str, copied: Callable[[str], Path]):
    run = copied("law")
    edit(run / "scores" / "results.json", name=name)
    with pytest.raises(BadInput, match=r"results\.json: .* is no name of a recipe"):
        read_specialists([run])


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_run_that_is_not_finished_is_refused(missing: str, copied: Callable[[str], Path]):
    run = copied("law")
    gone = run / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(BadInput, match=r"so (this|the) run is not finished"):
        read_specialists([run])


def test_specialists_that_were_measured_with_two_templates_or_ends_are_refused(copied: Callable[[str], Path]):
    one, other, last = copied("law"), copied("money"), copied("health")
    (other / "merged" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    edit(last / "merged" / "generation_config.json", eos_token_id=[7])
    with pytest.raises(BadInput, match=r"law and .*money: they differ in the chat template"):
        read_specialists([one, other])
    with pytest.raises(BadInput, match=r"law and .*health: they differ in the token that ends an answer"):
        read_specialists([one, last])


def test_a_base_that_is_gone_or_another_is_refused(copied: Callable[[str], Path], tiny_base: Path, tmp_path: Path):
    run = copied("law")
    edit(run / "recipe.json", base_model={"path": "./gone"})
    (found,) = read_specialists([run])
    with pytest.raises(BadInput, match=r"its base, tiny \(.*\), is not found \(.*\n  Name its folder with --base"):
        base_folder(found, None)
    assert base_folder(found, tiny_base) == tiny_base
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    edit(other / "config.json", rms_norm_eps=1e-3)
    with pytest.raises(BadInput, match=r"other: not the base of .*law, tiny"):
        base_folder(found, other)


@pytest.mark.usefixtures("never_starts")
def test_bad_input_ends_before_anything_is_made(
    copied: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = copied("law")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        wrong = {
            "cannot be had": [str(run), "--port", port],
            "--port: 99999 is none": [str(run), "--port", "99999"],
            "did you mean 'vllm'": [str(run), "--engine", "vlm"],
            "vllm is not installed": [str(run), "--engine", "vllm"],
            "0 tokens are none": [str(run), "--context", "0"],
            "both are called law": [str(run), str(run)],
            "so the run is not finished": [str(tmp_path / "nothing")],
        }
        for says, arguments in wrong.items():
            assert main(["serve", *arguments]) == 2
            assert says in capsys.readouterr().err
    assert not (run / "export").exists()


# --- the engines' commands


def test_vllm_is_told_names_adapters_rank_and_what_was_measured():
    adapters = {"law": Path("/runs/law/adapter"), "money": Path("/runs/money/adapter")}
    where: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "context": 2048}
    made = vllm_command(Path("/base"), ["tiny", "base"], adapters, 12, Path("/runs/law/merged"), **where)
    assert made[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "/base"]
    text = " ".join(made[5:])
    assert "--served-model-name tiny base --host 127.0.0.1 --port 8000 --max-model-len 2048" in text
    assert "--tokenizer /runs/law/merged --generation-config /runs/law/merged" in text
    assert "--enable-prefix-caching --enable-lora --max-loras 2 --max-lora-rank 16" in text
    assert text.endswith("--lora-modules law=/runs/law/adapter money=/runs/money/adapter")
    assert json.loads(made[made.index("--override-generation-config") + 1]) == {"temperature": 0.0}


def test_an_adapter_of_a_rank_that_vllm_has_no_place_for_is_refused():
    where: dict[str, Any] = {"host": "127.0.0.1", "port": 8000, "context": 2048}
    with pytest.raises(ModelError, match="rank 600, and vLLM takes at most 512"):
        vllm_command(Path("/base"), ["base"], {"law": Path("/law")}, 600, Path("/merged"), **where)


def test_llama_cpp_is_told_the_whole_plan():
    plan = Plan("/base.gguf", {"tiny": None, "law": "/law.gguf"}, {"base": "tiny"}, "127.0.0.1", 8000, 2048)
    *start, told = command(plan)
    assert start[1:] == ["-m", "sllm_tune.deliver.front"]
    assert Plan(**json.loads(told)) == plan
