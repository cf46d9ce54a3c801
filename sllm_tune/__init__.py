"""A recipe in, a smaller domain specialist and an honest side-by-side report out.

`load_recipe` reads a recipe; `pipeline` holds the stages: `prepare`, `train`, `evaluate`, `report`, `run`, `check`.
"""

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sllm_tune import pipeline
    from sllm_tune.recipe.recipe import load_recipe

__all__ = ["load_recipe", "pipeline"]

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


def __getattr__(name: str) -> Any:
    # On first use (PEP 562), so that `import sllm_tune` and `sllm-tune --help` load none of the libraries.
    if name == "load_recipe":
        return import_module("sllm_tune.recipe.recipe").load_recipe
    if name == "pipeline":
        return import_module("sllm_tune.pipeline")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
