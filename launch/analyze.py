"""Analyze on many ranks:  deepspeed --num_gpus 2 launch/analyze.py --config run.yaml [--analysis.threshold 0.1 ...]"""

import sys

from dist_moe.cli.main import launched_main

if __name__ == "__main__":
    sys.exit(launched_main("analyze"))
