"""Print the run directory that a training job's arguments name: run_dir.py --config run.yaml [--run-dir ...]."""

import argparse
from pathlib import Path

from dist_moe.config.load import load_config

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    args, overrides = parser.parse_known_args()
    print(load_config(args.config, overrides).run_dir.absolute())
