"""Train on many ranks:  deepspeed --num_gpus 2 launch/train.py --config run.yaml [--train.lr 1e-5 ...]"""

import sys

from dist_moe.cli.main import launched_main

if __name__ == "__main__":
    sys.exit(launched_main("train"))
