"""The `train` stage under a launcher: accelerate launch scripts/train.py RECIPE [key=value ...] [--run-dir DIR]."""

import sys

from sllm_tune.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
