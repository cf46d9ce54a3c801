"""`python -m sllm_tune`, also under a launcher: accelerate launch -m sllm_tune train RECIPE."""

import sys

from sllm_tune.cli import main

if __name__ == "__main__":
    sys.exit(main())
