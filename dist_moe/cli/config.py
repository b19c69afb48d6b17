"""`dist-moe config init|show|diff`: write a configuration, show where each value comes from, compare two files."""

from __future__ import annotations

import json
from typing import Any

from dist_moe.cli.arguments import path
from dist_moe.cli.call import Call

SECTIONS = ("model", "data", "batches", "analysis", "train", "parallel", "checkpoint", "evaluation")


def add_config_commands(commands: Any) -> None:
    """Add them to the subparsers of `dist-moe`."""
    command = commands.add_parser("config", help="write, show or compare configurations")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("init", help="write a configuration file with every setting, its default and its help")
    action.add_argument("--out", type=path, help="new YAML file (default: print to the console)")
    action.set_defaults(run_command=_init)
    what = "print every setting of a run, and whether its value comes from the default, the file or the command line"
    action = actions.add_parser("show", help=what, description=f"{what[0].upper()}{what[1:]}.")
    action.add_argument("--config", type=path, required=True, help="YAML file of the run")
    action.take_settings("", *SECTIONS)
    action.set_defaults(run_command=_show)
    action = actions.add_parser("diff", help="print the settings in which two files differ; exit status 1 if any do")
    action.add_argument("first", type=path, help="YAML file of a run, or analyze.yaml or train.yaml of a run directory")
    action.add_argument("second", type=path, help="YAML file to compare it with")
    action.set_defaults(run_command=_diff)


def _init(call: Call) -> int:
    from dist_moe.report.config import template

    return call.new_file(template(), "fill in run_dir, model.path and data.paths")


def _show(call: Call) -> int:
    from dist_moe.config.load import resolve
    from dist_moe.report.config import resolved_lines

    for line in resolved_lines(resolve(call.args.config, call.settings)):
        print(line)
    return 0


def _diff(call: Call) -> int:
    from dist_moe.config.load import load_config
    from dist_moe.report.config import differences

    found = differences(load_config(call.args.first), load_config(call.args.second))
    for key, values in found.items():
        print(f"{key}: {' -> '.join(json.dumps(value, ensure_ascii=False) for value in values)}")
    if not found:
        print("no setting differs")
    return 1 if found else 0
