import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sllm_tune
from sllm_tune import pipeline
from sllm_tune.errors import RecipeError
from sllm_tune.recipe.recipe import load_recipe

ROOT = Path(__file__).parents[2]
VARIABLES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def printed(code: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.stderr == ""
    return run.stdout.strip()


def test_importing_the_package_imports_no_library():
    libraries = {"torch", "transformers", "numpy", "pydantic", "yaml"}
    assert printed(f"import sys, sllm_tune; print({libraries} & set(sys.modules))") == "set()"


def test_telemetry_is_off_once_the_package_is_imported():
    code = f"import os, sllm_tune.errors; print({{name: os.environ[name] for name in {list(VARIABLES)}}})"
    assert printed(code) == str(VARIABLES)
    assert printed("import sllm_tune, huggingface_hub.constants as hub; print(hub.HF_HUB_DISABLE_TELEMETRY)") == "True"


def test_what_the_user_has_set_stays():
    code = "import os, sllm_tune; print(os.environ['TOKENIZERS_PARALLELISM'])"
    assert printed(code, TOKENIZERS_PARALLELISM="true") == "true"


def test_what_the_package_offers_is_reached_by_its_name():
    assert sllm_tune.load_recipe is load_recipe
    assert sllm_tune.pipeline is pipeline


def test_a_name_that_the_package_does_not_have_is_refused():
    with pytest.raises(AttributeError, match="module 'sllm_tune' has no attribute 'load_recipes'"):
        sllm_tune.load_recipes  # noqa: B018


def test_the_version_is_printed():
    asked = "import sys; sys.argv = ['sllm-tune', '--version']; import sllm_tune.cli as c; c.main()"
    assert printed(asked).startswith("sllm-tune 0.")


@pytest.mark.parametrize("name", ["legal/quickstart", "medical/llama3_qlora", "finance/quickstart.yaml"])
def test_a_recipe_that_comes_with_the_package_is_found_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name).folder == ROOT / "recipes" / name.split("/")[0]
    with pytest.raises(RecipeError, match="legal/quickstrat: no such file; did you mean 'legal/quickstart'"):
        load_recipe("legal/quickstrat")
    (tmp_path / "legal").mkdir()
    (tmp_path / "legal" / "quickstart").write_text("name: mine")  # a file of the user's own comes first
    with pytest.raises(RecipeError, match="domain: required"):
        load_recipe("legal/quickstart")


@pytest.mark.slow
def test_a_wheel_brings_every_recipe_and_runs_one_by_its_name(tmp_path: Path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sllm_tune-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    brought = {str(path.relative_to(tmp_path / "installed" / "sllm_tune")) for path in tmp_path.rglob("recipes/**/*.*")}
    assert brought == {str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/**/*.*")}
    before = sorted((tmp_path / "installed").rglob("*"))
    run = [sys.executable, "-B", "-m", "sllm_tune", "run", "legal/quickstart", "--smoke"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.splitlines()[-1]).name == "report.html"
    assert sorted((tmp_path / "installed").rglob("*")) == before  # the run folder is in the working folder
