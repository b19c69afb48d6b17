"""Print the run directory that a training job's arguments name: run_dir.py --config run.yaml [--run-dir ...]."""

import sys

from dist_moe.cli.arguments import Parser, path
from dist_moe.cli.process import run_process
from dist_moe.cli.streams import Output
from dist_moe.config.load import load_config


def main(output: Output) -> int:
    parser = Parser("run_dir.py", description=__doc__)
    parser.add_argument("--config", type=path, required=True)
    args, overrides = parser.parse_known_args()
    print(load_config(args.config, overrides).run_dir.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main, "run_dir.py"))
