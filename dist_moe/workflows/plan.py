"""`dist-moe plan`: what a run needs, from its configuration, the model's shapes and its masks; reads no weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from dist_moe.config.attention import masks_rows
from dist_moe.config.load import load_config
from dist_moe.config.objective import needs_base
from dist_moe.config.schema import Config
from dist_moe.engines.deepspeed_config import is_zero3, read_deepspeed_config
from dist_moe.errors import UserError, shown
from dist_moe.planning.fit import GPU_SIZES, Trained, divisors, room, smallest_ep_size
from dist_moe.planning.memory import Setup
from dist_moe.planning.outline import Outline, known_model, known_names, recognised
from dist_moe.planning.plan import Job, Plan, make_plan
from dist_moe.selection.stored import open_masks
from dist_moe.training.steps import read_steps
from dist_moe.weights.directory import CONFIG, INDEX, SINGLE
from dist_moe.weights.fetched import model_directory
from dist_moe.workflows.run_dir import RunDir

UNION = 0.1
"""Of all experts, those that are trained by some batch, where no masks say how many."""
PACKED = ("fp8", "mxfp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command's arguments; None: not given."""

    config: Path | None = None
    settings: Sequence[str] = ()
    model: str | None = None
    num_nodes: int = 1
    gpus_per_node: int = 1
    gpu: int | None = None
    union: float | None = None
    batch_experts: int | None = None
    row_tokens: int | None = None
    answer_tokens: int | None = None
    tokens_per_second: float | None = None


def plan(request: Request) -> Plan:
    """Raises `UserError`: something is wrong or missing in the configuration, the model or the arguments."""
    config = _config(request)
    title, packed, outline = _outline(request.model or str(config.model.path), config)
    num_ranks = request.num_nodes * request.gpus_per_node
    trained, num_batches = _trained(request, config, outline)
    row_tokens = request.row_tokens or config.data.max_length
    answer_tokens = request.answer_tokens or row_tokens
    if answer_tokens > row_tokens:
        raise UserError(f"--answer-tokens is {answer_tokens}, but a row has {row_tokens} tokens (--row-tokens)")
    rate, rate_from = _rate(request, config)
    ep_size, sets_ep_size = _ep_size(config, outline, num_ranks)
    setup = setup_of(config, outline, num_ranks, ep_size, row_tokens=row_tokens, answer_tokens=answer_tokens)
    if config.parallel.ep_size == "auto":
        chosen, _ = smallest_ep_size(outline, setup, trained, room(request.gpu or max(GPU_SIZES)))
        setup = replace(setup, ep_size=chosen)
    job = Job(
        model=title,
        unpacked_from=packed,
        num_nodes=request.num_nodes,
        gpus_per_node=request.gpus_per_node,
        gpu=request.gpu,
        config=str(request.config or "run.yaml"),
        is_assumed=num_batches is None,
        num_batches=num_batches,
        epochs=config.train.epochs,
        kept_checkpoints=config.checkpoint.keep,
        tokens_in_pass=config.analysis.micro_batch_tokens,
        tokens_per_second=rate,
        rate_from=rate_from,
        sets_ep_size=sets_ep_size,
    )
    return make_plan(job, outline, setup, trained)


def setup_of(
    config: Config, outline: Outline, num_ranks: int, ep_size: int, *, row_tokens: int, answer_tokens: int
) -> Setup:
    """How a configured run is spread over ranks, with rows of at most so many tokens."""
    return Setup(
        num_ranks=num_ranks,
        ep_size=ep_size,
        shards_dense=num_ranks > 1 and _shards_dense(config),
        offloads=config.parallel.offload_optimizer == "cpu",
        checkpointing=config.train.activation_checkpointing,
        batch_size=config.batches.batch_size,
        micro_batch_size=1 if outline.rows_alone else config.train.micro_batch_size,
        row_tokens=row_tokens,
        answer_tokens=answer_tokens,
        masks_rows=masks_rows(config),
        audits=config.train.audit > 0,
        needs_base=needs_base(config.train.objective),
        dense_parameters=dense_parameters(config, outline),
    )


def outline_of_model(config: Config) -> Outline:
    """Shapes of the configured model."""
    return _outline(str(config.model.path), config)[2]


def dense_parameters(config: Config, outline: Outline) -> int:
    """Of the dense weights that a run trains."""
    if config.train.trains == "experts_and_dense":
        return outline.dense_bytes // outline.item_bytes
    return outline.router_parameters if config.train.trains != "experts" else 0


def _config(request: Request) -> Config:
    words = list(request.settings)
    if request.config is None:
        if request.model is None:
            raise UserError(
                "neither --config nor --model is given: pass the run's YAML file, or a model directory, or one of "
                f"{', '.join(known_names())}"
            )
        words = ["--run_dir", "runs/plan", "--model.path", request.model, "--data.paths", "prompts.jsonl", *words]
    return load_config(request.config, words)


def _outline(model: str, config: Config) -> tuple[str, str | None, Outline]:
    """Name, packed format and shapes of a model: of a known one, or of a directory or its config.json."""
    if model in known_names():
        known = known_model(model)
        if config.model.dtype in ("auto", known.outline.dtype):
            return known.title, known.published if known.published in PACKED else None, known.outline
        from dist_moe.planning.trace import outline_of_config

        return known.title, None, outline_of_config(known.config, config.model.dtype)
    path = model_directory(Path(model), "model", revision=config.model.revision, weights=False)
    folder = path.parent if path.name == CONFIG else path
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{shown(model, 200)} is no model: expected a directory with config.json, such a file, or one of "
            f"{', '.join(known_names())}"
        )
    found = recognised(folder / CONFIG)
    if found is not None and config.model.dtype in ("auto", found.outline.dtype):
        return f"{folder} ({found.title})", None, found.outline
    from dist_moe.planning.trace import outline_of_path

    no_weights = not ((folder / SINGLE).exists() or (folder / INDEX).exists())
    dtype = "bfloat16" if config.model.dtype == "auto" and no_weights else config.model.dtype
    return str(folder), None, outline_of_path(folder, dtype)


def _trained(request: Request, config: Config, outline: Outline) -> tuple[Trained, int | None]:
    """How many experts are trained, and the number of batches if masks say so."""
    has_masks = config.train.masks is not None or RunDir(config.run_dir).masks.exists()
    if request.union is None and request.config is not None and has_masks:
        return trained_by_masks(config, outline)
    num_experts = outline.num_layers * outline.num_experts
    in_all = max(1, round((UNION if request.union is None else request.union) * num_experts))
    of_batch: int = request.batch_experts or config.analysis.top_k  # type: ignore[attr-defined]  # a rule's setting
    return Trained(in_all=in_all, in_batch=min(of_batch, in_all)), None


def trained_by_masks(config: Config, outline: Outline) -> tuple[Trained, int]:
    """How many experts a run's masks train, and the number of batches."""
    masks = config.train.masks or RunDir(config.run_dir).masks
    masks_BLE = open_masks(masks).masks[:]
    if masks_BLE.shape[1:] != (outline.num_layers, outline.num_experts):
        raise UserError(
            f"{masks}: masks of {masks_BLE.shape[1]} layers of {masks_BLE.shape[2]} experts, but the model has "
            f"{outline.num_layers} of {outline.num_experts}: give its own"
        )
    in_batch = int(masks_BLE.sum((1, 2)).max())
    return Trained(in_all=int(masks_BLE.any(0).sum()), in_batch=in_batch), len(masks_BLE)


def _rate(request: Request, config: Config) -> tuple[float | None, str | None]:
    """Tokens a second of the whole job, and where the number comes from."""
    if request.tokens_per_second is not None:
        return request.tokens_per_second, "--tokens-per-second"
    metrics = RunDir(config.run_dir).metrics
    if request.config is None or not metrics.is_file():
        return None, None
    rates = [step.tokens_per_second for step in read_steps(metrics) if step.tokens_per_second]
    return (median(rates), f"the steps in {metrics}") if rates else (None, None)


def _ep_size(config: Config, outline: Outline, num_ranks: int) -> tuple[int, bool]:
    """Ranks that share experts, and whether the setting has to be given for that."""
    asked = config.parallel.ep_size
    if asked is None or asked == "auto":
        most = max(size for size in divisors(num_ranks) if size <= outline.num_experts)
        return most, asked is None and most != num_ranks
    if num_ranks % asked or asked > outline.num_experts:
        sizes = [str(size) for size in divisors(num_ranks) if size <= outline.num_experts]
        raise UserError(
            f"parallel.ep_size is {asked}, but there are {num_ranks} ranks, and {outline.num_experts} experts in a "
            f"layer: choose one of {', '.join(sizes)}"
        )
    return asked, False


def _shards_dense(config: Config) -> bool:
    return is_zero3(read_deepspeed_config(config.train.deepspeed_config)) or config.engine == "fsdp"
