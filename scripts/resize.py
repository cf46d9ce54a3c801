"""The `resize` stage under a launcher: accelerate launch scripts/resize.py RECIPE [key=value ...] [--run-dir DIR]."""

import sys

from sllm_tune.cli import main

if __name__ == "__main__":
    sys.exit(main(["resize", *sys.argv[1:]]))
