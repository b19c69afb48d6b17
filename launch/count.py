"""Count on many ranks:  deepspeed --num_gpus 2 launch/count.py --config run.yaml [--analysis.tokens all ...]"""

import sys

from dist_moe.cli.main import launched_main

if __name__ == "__main__":
    sys.exit(launched_main("count"))
