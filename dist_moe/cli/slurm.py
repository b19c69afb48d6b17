"""`dist-moe slurm site|preview|submit|status|cancel`: their arguments, and the functions that they call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dist_moe.cli.arguments import count, path, text
from dist_moe.cli.call import Call
from dist_moe.slurm import STAGES

if TYPE_CHECKING:
    from dist_moe.workflows.slurm_chain import Request

SECTIONS = ("model", "data", "batches", "analysis", "train", "parallel", "checkpoint", "evaluation")


def add_slurm_commands(commands: Any) -> None:
    """Add them to the subparsers of `dist-moe`."""
    command = commands.add_parser("slurm", help="run all stages as a chain of Slurm jobs, watch and cancel them")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    action = actions.add_parser("site", help="write a site file: every key that describes a cluster, with its help")
    action.add_argument("--out", type=path, help="new YAML file (default: print to the console)")
    action.set_defaults(run_command=_site)
    _add_chain(actions, "preview", "print exactly what `submit` would submit, and do nothing", _preview)
    _add_chain(
        actions, "submit", "submit count, select, train, evaluate and report, each after the one before", _submit
    )
    action = actions.add_parser("status", help="print what the scheduler and the run's files say of its jobs")
    action.add_argument("run", type=path, help="run directory")
    action.add_argument("--json", action="store_true", help="print one JSON object")
    action.set_defaults(run_command=_status)
    action = actions.add_parser("cancel", help="cancel the jobs of a run that have not ended, and no others")
    action.add_argument("run", type=path, help="run directory")
    action.set_defaults(run_command=_cancel)


def _add_chain(actions: Any, name: str, what: str, run: Any) -> None:
    action = actions.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}. Stages whose results are in the run directory are left out. "
        "Settings of the run may stand on the command line, as --train.lr 2e-5.",
    )
    action.add_argument("--config", type=path, required=True, help="YAML file of the run")
    action.add_argument("--site", type=path, help="YAML file of the cluster; `dist-moe slurm site` writes one")
    action.add_argument(
        "--resources",
        nargs="+",
        type=text,
        default=[],
        metavar="KEY=VALUE",
        help="keys of the site file for this run, such as nodes=2 train.mem=119G",
    )
    action.add_argument("--stages", nargs="+", choices=STAGES, help="only these stages, though results may be there")
    action.add_argument(
        "--parts", type=count, default=1, metavar="N", help="jobs that share the counting, as an array (default: 1)"
    )
    action.add_argument(
        "--held-out",
        type=path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of rows to evaluate (default: the run's)",
    )
    action.take_settings("", *SECTIONS, usage="--config FILE [--site FILE] [options] [--SETTING VALUE ...]")
    action.set_defaults(run_command=run)


def _site(call: Call) -> int:
    from dist_moe.report.slurm import site_template

    return call.new_file(site_template(), "set what the jobs of this cluster need")


def _request(call: Call) -> Request:
    from dist_moe.workflows.slurm_chain import Request

    args = call.args
    return Request(
        config=args.config,
        settings=call.settings,
        site=args.site,
        resources=args.resources,
        stages=args.stages,
        parts=args.parts,
        held_out=args.held_out,
    )


def _preview(call: Call) -> int:
    from dist_moe.report.slurm import preview_lines
    from dist_moe.workflows.slurm_chain import chain

    for line in preview_lines(chain(_request(call))):
        print(line)
    return 0


def _submit(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.report.slurm import submitted_lines
    from dist_moe.workflows.slurm import submit

    for line in submitted_lines(*submit(_request(call))):
        print(line)
    return 0


def _status(call: Call) -> int:
    from dist_moe.report.slurm import slurm_json, slurm_lines
    from dist_moe.workflows.slurm import slurm_status

    run, stages = slurm_status(call.args.run)
    for line in [slurm_json(run, stages)] if call.args.json else slurm_lines(run, stages):
        print(line)
    return 0


def _cancel(call: Call) -> int:
    call.output.outlive_reader()
    from dist_moe.report.slurm import cancelled_lines
    from dist_moe.workflows.slurm import cancel_run

    for line in cancelled_lines(cancel_run(call.args.run)):
        print(line)
    return 0
