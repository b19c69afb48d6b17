"""Words on the command line that no command can do anything with."""

import pytest

from tests.bad_inputs.harness import Case, check, ids, nothing

RUN = "train --config run.yaml"
BLANK = ("is blank: is a shell variable not set?",)


def wrong(argv: str, *says: str) -> Case:
    return Case(argv, nothing, argv, says)


COMMANDS = [
    Case("nothing at all", nothing, "", ("the following arguments are required: COMMAND; see dist-moe --help",)),
    wrong("analyse --config run.yaml", "'analyse' is none of count, analyze, train", "did you mean analyze?"),
    wrong("exports run --out out", "did you mean export? see dist-moe --help"),
    wrong("--verbose", "required: COMMAND"),
    wrong("analyze", "required: --config; see dist-moe analyze --help"),
    wrong("train --confg run.yaml", "required: --config; did you mean --config? see dist-moe train --help"),
    wrong("train --config", "argument --config: expected one argument"),
    wrong("export run", "required: --out; see dist-moe export --help"),
    wrong("export --out out", "required: run"),
    wrong("export run --out out --delta --link", "argument --link: not allowed with argument --delta"),
    wrong("export run --out out --lnk", "unrecognized arguments: --lnk; did you mean --link?"),
    wrong("export run other --out out", "unrecognized arguments: other; see dist-moe export --help"),
    wrong("apply model", "required: delta, --out"),
    wrong("verify model", "required: model; see dist-moe verify --help"),
    wrong("verify model model --masks run/masks.zarr --top 3", "--top is for a verification without --masks"),
    wrong("verify model model --masks run/masks.zarr --json x", "--json is for a verification without --masks"),
    wrong("verify model model --top 0", "argument --top: expected a whole number from 1, got '0'"),
    wrong("verify model model --json model", "cannot write model"),
    wrong("verify model run", "run", "config.json"),
    wrong("verify model model --counts nowhere.zarr", "nowhere.zarr"),
    wrong("verify model model --counts run/masks.zarr", "run/masks.zarr"),
    wrong("verify model model --csv model", "cannot write model"),
    wrong("verify model model --csv run.yaml/new/x.csv", "cannot write run.yaml/new/x.csv: Not a directory"),
    wrong("evaluate model --data prompts.jsonl --silence nowhere.zarr", "nowhere.zarr"),
    wrong("evaluate model --data prompts.jsonl --silence run/counts.zarr", "run/counts.zarr"),
    wrong("evaluate model --data prompts.jsonl --silence run/masks.zarr --batches -1", "--batches: expected a whole"),
    wrong("evaluate model --data prompts.jsonl --harness-limit 0", "--harness-limit: expected a whole number from 1"),
    wrong("evaluate", "required: MODEL_OR_RUN"),
    wrong("evaluate run --data", "argument --data: expected at least one argument"),
    wrong("evaluate run --dta x.jsonl", "unrecognized arguments: --dta; did you mean --data?"),
    wrong("report", "required: RUN; see dist-moe report --help"),
    wrong("report nowhere", "no run directory nowhere: expected one that a command of dist-moe has written"),
    wrong("report model", "model has nothing to report: expected the results of `dist-moe count`"),
    wrong("report run --out run.yaml", "run.yaml exists, and is no report of dist-moe: choose another --out"),
    wrong("report run --out run", "cannot write run: Is a directory"),
    wrong("report run --out run.yaml/page.html", "cannot write run.yaml"),
    wrong("report run --exprt x", "unrecognized arguments: --exprt; did you mean --export?"),
    wrong("report run --export nowhere", "nowhere"),
    wrong("status", "required: run; see dist-moe status --help"),
    wrong(
        "status nowhere", "no run directory nowhere: expected one that a command of dist-moe has written, its run_dir"
    ),
    wrong("status run.yaml", "no run directory run.yaml"),
    wrong("watch nowhere", "no run directory nowhere"),
    wrong("watch run --interval 0", "--interval: expected a number of seconds above 0, at most 86400, got '0'"),
    wrong("slurm", "required: ACTION; see dist-moe slurm --help"),
    wrong(
        "slurm sbmit --config run.yaml",
        "'sbmit' is none of site, preview, submit, status, cancel",
        "did you mean submit?",
    ),
    wrong("slurm preview", "required: --config; see dist-moe slurm preview --help"),
    wrong("slurm preview --config nowhere.yaml", "nowhere.yaml: cannot read the config file"),
    wrong("slurm preview --config run.yaml --site nowhere.yaml", "nowhere.yaml: cannot read"),
    wrong("slurm preview --config run.yaml --site run.yaml", "run.yaml:", ": a site has no '"),
    wrong("slurm preview --config run.yaml --resources", "argument --resources: expected at least one argument"),
    wrong("slurm preview --config run.yaml --resources node=2", "--resources 'node=2'", "did you mean nodes?"),
    wrong("slurm preview --config run.yaml --stages trian", "'trian' is none of count", "did you mean train?"),
    wrong("slurm preview --config run.yaml --parts 0", "argument --parts: expected a whole number from 1, got '0'"),
    wrong(
        "slurm preview --config run.yaml --held-out nowhere.jsonl", "--held-out nowhere.jsonl: there is no such file"
    ),
    wrong(
        "slurm preview --config run.yaml --stages count --analysis.part 1/2", "the jobs get their parts by --parts N"
    ),
    wrong(
        "slurm preview --config run.yaml --stages select --overwrite", "overwrite is set, and a chain of jobs cannot"
    ),
    wrong("slurm preview --config run.yaml --train.l 1", "unknown key `train.l`"),
    wrong("slurm status nowhere", "no run directory nowhere"),
    wrong("slurm status run", "run: no jobs were submitted for it by `dist-moe slurm submit`"),
    wrong("slurm cancel run", "run: no jobs were submitted for it"),
    wrong("slurm cancel nowhere", "nowhere: no jobs were submitted for it"),
    wrong("slurm site --out run.yaml", "run.yaml exists: choose another --out or remove it"),
    wrong("doctor --ranks 0", "argument --ranks: expected a whole number from 1, got '0'"),
    wrong("doctor run", "unrecognized arguments: run; see dist-moe doctor --help"),
    wrong("checkpoint list run", "'list' is none of show"),
    wrong("checkpoint show", "required: path"),
    wrong("store", "required: ACTION; see dist-moe store --help"),
    wrong("store chek run/masks.zarr", "'chek' is none of check, copy", "did you mean check?"),
    wrong("store check", "required: STORE; see dist-moe store check --help"),
    wrong("store copy run/masks.zarr", "required: PLACE"),
    wrong("store diff run/masks.zarr", "required: STORE"),
    wrong("store diff run/masks.zarr run/masks.zarr run/masks.zarr", "unrecognized arguments: run/masks.zarr"),
    wrong("import", "required: file"),
    wrong("import x.pkl --table rsk", "'rsk' is none of experts, risk"),
    wrong("inspect-model", "required: model"),
    wrong("inspect-model model --jsn", "did you mean --json?"),
    wrong("families nonsense", "'nonsense' is no MoE causal language model type of transformers"),
    wrong("families qwen3moe", "did you mean qwen3_moe?"),
    wrong("confg show", "did you mean config?"),
    wrong("config", "required: ACTION; see dist-moe config --help"),
    wrong("config shw", "'shw' is none of init, show, diff", "did you mean show?"),
    wrong("config show", "required: --config; see dist-moe config show --help"),
    wrong("config show --config run.yaml --trian.lr 1", "unknown key `trian.lr`; did you mean train.lr?"),
    wrong("config show --config run.yaml --train.lr fast", "train.lr: expected a number, got fast"),
    wrong("config init --out run.yaml", "run.yaml exists"),
    wrong("config init --out run.yaml/new.yaml", "run.yaml/new.yaml"),
    wrong("config init --ot new.yaml", "unrecognized arguments: --ot; did you mean --out?"),
    wrong("config diff run.yaml", "required: second"),
    wrong("config diff run.yaml nowhere.yaml", "nowhere.yaml: cannot read the config file"),
    wrong("config diff run.yaml run.yaml --seed 1", "unrecognized arguments: --seed"),
    wrong("--print-completion tcsh", "'tcsh' is none of bash, zsh, fish"),
    wrong("demo --quick", "unrecognized arguments: --quick; see dist-moe demo --help"),
    Case("many words", nothing, f"export run --out out {'x' * 3000}", ("unrecognized arguments: xxx", "...")),
    Case("a long command", nothing, "y" * 3000, ("is none of count, analyze",)),
    Case("a newline", nothing, "'an\nalyze'", (r"'an\nalyze' is none of",)),
]
BLANKS = [
    Case(argv, nothing, argv, BLANK)
    for argv in (
        "train --config ''",
        "export '' --out out",
        "export run --out ''",
        "export run --out ' '",
        "apply '' delta --out out",
        "apply model delta --out ''",
        "verify model model --masks ''",
        "verify '' model --masks run/masks.zarr",
        "evaluate ''",
        "evaluate run --data ''",
        "checkpoint show ''",
        "store check ''",
        "store copy run/masks.zarr ''",
        "store diff '' run/masks.zarr",
        "import ''",
        "import x.pkl --out ''",
        "inspect-model ''",
        "demo --out ''",
        "config init --out ''",
        "config show --config ''",
        "config diff run.yaml ''",
    )
]
NUMBERS = [
    Case(f"import {words}", nothing, f"import x.pkl --out x.zarr {words}", (says,))
    for words, says in (
        ("--threshold nan --top-k 5", "argument --threshold: expected a number from -1 to below 1, got 'nan'"),
        ("--threshold inf --top-k 5", "got 'inf'"),
        ("--threshold -inf --top-k 5", "argument --threshold: expected"),
        ("--threshold 1 --top-k 5", "got '1'"),
        ("--threshold x --top-k 5", "got 'x'"),
        ("--threshold 0.1 --top-k -3", "argument --top-k: expected a whole number from 1, got '-3'"),
        ("--threshold 0.1 --top-k 0", "got '0'"),
        ("--threshold 0.1 --top-k 1.5", "got '1.5'"),
        ("--threshold 0.1 --top-k nan", "got 'nan'"),
    )
]
SETTINGS = [
    Case(f"setting {words[:60]}", nothing, f"{RUN} {words}", ("command line", says))
    for words, says in (
        ("--train.lr nan", "train.lr: expected"),
        ("--train.lr inf", "train.lr: expected less than inf, got inf"),
        ("--train.lr -inf", "train.lr: expected greater than 0, got -inf"),
        ("--train.lr -1e-5", "train.lr: expected greater than 0, got -1e-5"),
        ("--train.lr fast", "train.lr: expected a number, got fast"),
        ("--train.lr", "train.lr: expected one value, got 0"),
        ("--train.lr 1 2", "train.lr: expected one value, got 2"),
        ("--train.lr ''", "train.lr: expected text that is not blank"),
        ("--train.betas 0.9", "train.betas"),
        ("--train.betas 0.9 nan", "train.betas[1]"),
        ("--train.epochs 1.5", "train.epochs: expected a whole number, got 1.5"),
        (f"--train.epochs {'9' * 5000}", "train.epochs: expected"),
        ("--train.epochs 3000000000", "train.epochs: expected less than 2147483648"),
        ("--train.mode Route", "train.mode: expected 'route' or 'update', got Route"),
        ("--train.masks ' '", "train.masks: expected text that is not blank"),
        ("--train.deepspeed-config ''", "train.deepspeed_config: expected text that is not blank"),
        ("--analysis.threshold nan", "analysis.threshold: expected"),
        ("--analysis.top-k -1", "analysis.top_k: expected greater than or equal to 1, got -1"),
        ("--analysis.topk 5", "unknown key `analysis.topk`; did you mean analysis.top_k?"),
        ("--batches.safe-ratio 1", "batches.safe_ratio: expected less than 1, got 1"),
        ("--seed -1", "seed: expected greater than or equal to 0, got -1"),
        ("--overwrite perhaps", "overwrite: expected true or false, got perhaps"),
        ("--run-dir ''", "run_dir: expected text that is not blank, got ''"),
        ("--run-dir", "run_dir: expected one value, got 0"),
        ("--run-dir=", "run_dir: expected text that is not blank"),
        ("--data.paths", "data.paths: expected at least 1 item"),
        ("--data.paths prompts.jsonl ''", "data.paths: expected text that is not blank"),
        ("--engine gpu", "engine: expected 'auto', 'local', 'deepspeed' or 'fsdp', got gpu"),
        ("--trian.lr 1", "unknown key `trian.lr`; did you mean train.lr?"),
        (f"--{'z' * 3000} 1", "unknown key `zzz"),
        ("stray", "unexpected argument 'stray'"),
        ("-x", "unexpected argument '-x'"),
        ("--", "unknown key ``"),
        ("--train 1", "unknown key `train`"),
    )
]
PATHS = [
    wrong("train --config nowhere.yaml", "nowhere.yaml: cannot read the config file: No such file or directory"),
    *(wrong(f"{command} {'n' * 300}", "File name too long") for command in ("train --config", "inspect-model")),
    *(wrong(f"{command} {'n' * 300}", "File name too long") for command in ("store check", "checkpoint show")),
    *(
        wrong(f"{command} {place}", "File name too long")
        for command in ("export --out out", "evaluate run --data", "analyze --config run.yaml --data.paths")
        for place in ("n" * 300, "n/" * 2100)
    ),
    wrong("train --config run.yaml/x", "cannot read the config file: Not a directory"),
    wrong("evaluate run --data nowhere.jsonl", "nowhere.jsonl: no such file"),
    wrong("inspect-model nowhere", "nowhere"),
    wrong("checkpoint show nowhere", "nowhere"),
    wrong("store check nowhere", "no mask store at nowhere"),
    wrong("import nowhere.pkl", "cannot read nowhere.pkl: No such file or directory"),
    wrong("import run", "cannot read run: Is a directory"),
]
INSPECTED = [
    # threshold=nan selects nothing and top_k=-3 all but three: neither may look like an answer
    wrong("inspect run/masks.zarr diff threshold=nan", "threshold=nan: expected"),
    wrong("inspect run/masks.zarr diff top_k=-3", "top_k=-3: expected greater than or equal to 1, got -3"),
    wrong("inspect run/masks.zarr diff top_k=1.5", "top_k=1.5: expected a whole number"),
    wrong("inspect run/masks.zarr diff top_k=1 top_k=2", "top_k is given twice"),
    wrong("inspect run/masks.zarr plots --out ''", "is blank"),
    wrong("inspect run/masks.zarr --jsn", "unrecognized arguments: --jsn; did you mean --json? see dist-moe inspect"),
]
CASES = COMMANDS + BLANKS + NUMBERS + SETTINGS + PATHS + INSPECTED


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_command_line(copy, capsys, case):
    check(case, capsys)
