import os
import subprocess
import sys
from pathlib import Path

import pytest

import sllm_tune
from sllm_tune import pipeline
from sllm_tune.recipe import load_recipe

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
