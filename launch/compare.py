"""Compare on many ranks:  deepspeed --num_gpus 2 launch/compare.py --config FILE --held-out FILE ... --variants ..."""

import sys

from dist_moe.cli.main import launched_main

if __name__ == "__main__":
    sys.exit(launched_main("compare"))
