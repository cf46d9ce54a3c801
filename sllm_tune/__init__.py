"""A recipe in, a smaller domain specialist and an honest side-by-side report out.

`load_recipe` reads a recipe and `run` makes everything of it, from data to report; `FinishedRun` takes a run folder up
again. `pipeline` holds the stages one by one: `prepare`, `train`, `evaluate`, `report`, and `check` before them.
"""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sllm_tune import pipeline
    from sllm_tune.finished import FinishedRun
    from sllm_tune.pipeline import run
    from sllm_tune.recipe.recipe import Recipe, load_recipe

__all__ = ["FinishedRun", "Recipe", "load_recipe", "pipeline", "run"]

# Libraries read these once, when they are imported. What the user has set stays.
for _variable, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers and trl
    "DO_NOT_TRACK": "1",  # huggingface_hub
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets and evaluate: a request that counts each data set and metric loaded
    "TOKENIZERS_PARALLELISM": "false",  # tokenizers warns where a process that used its threads forks
}.items():
    os.environ.setdefault(_variable, _value)

# It warns, on import, that a kernel cannot be downloaded; its own code then does the same sums.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


_FROM = {"FinishedRun": "finished", "Recipe": "recipe.recipe", "load_recipe": "recipe.recipe", "run": "pipeline"}


def __getattr__(name: str) -> object:
    # On first use (PEP 562), so that `import sllm_tune` and `sllm-tune --help` load none of the libraries.
    if name == "pipeline":
        return import_module("sllm_tune.pipeline")
    if name in _FROM:
        return getattr(import_module(f"sllm_tune.{_FROM[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
