"""Evaluate on many ranks:  deepspeed --num_gpus 2 launch/evaluate.py RUN [--data FILE ...] [--ep-size N]"""

import sys

from dist_moe.cli.main import launched_main

if __name__ == "__main__":
    sys.exit(launched_main("evaluate"))
