"""The configuration of a run: one dataclass for each section of the YAML file.

The docstring of a field is its help text, on the command line and in docs/configuration.md. The allowed range of a
field is part of its type (`Annotated`). `dist_moe.config.load` checks ranges when it reads a configuration; the
dataclasses themselves do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval, MinLen

from dist_moe.config.adjust import AdjustConfig
from dist_moe.config.chosen import chosen_settings
from dist_moe.config.judges import JudgeConfig
from dist_moe.config.objective import ObjectiveConfig
from dist_moe.ranges import Count, DecayRate, NonNegative, NonNegativeInt, Positive, Share, Text, Trains
from dist_moe.rules import RULES
from dist_moe.stats.settings import StatisticsConfig


def num_safe_rows(batch_size: int, safe_ratio: float) -> int:
    """Number of safe rows in a batch; the others are unsafe. Rounds half to even, as Python's `round` does."""
    return round(batch_size * safe_ratio)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    path: Path
    """The base model in Hugging Face format: a directory with safetensors files, config.json and tokenizer, or the name
    of a repository of the Hugging Face hub, OWNER/NAME, which is downloaded into the hub's cache. A directory of that
    name comes first."""
    revision: Text | None = None
    """Branch, tag or commit of the repository of that name. None: its branch main. The commit is recorded with all
    results; give it to read the same again after a branch has moved on."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the model's weights in memory. auto: the data type of the checkpoint."""
    kernels: Literal["torch", "liger"] = "torch"
    """What computes norms and rotary embeddings. liger: the package liger-kernel, on a GPU, for the model types that it
    knows: fewer passes over memory, and other rounding."""
    attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention", "eager"] = "auto"
    """What computes attention. auto: what transformers takes for the model type, sdpa where it has that, else eager.
    sdpa: torch's own, in one operation. eager: step by step, with all scores in memory. flash_attention_2: the package
    flash-attn, on a GPU, in bfloat16; of packed rows it computes nothing but each row's own scores. flex_attention:
    torch's compiled one, on a GPU. They differ in rounding."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    paths: Annotated[tuple[Path, ...], MinLen(1)]
    """Prompt files: .jsonl, .parquet, .csv, or directories that hold a saved Hugging Face dataset. NAME=FILE is a file
    of a published suite, such as `xstest=xstest_prompts.csv`: docs/judges.md lists the names. hf:OWNER/NAME:SPLIT is a
    dataset of the Hugging Face hub; docs/hub.md says more."""
    refusal: Text = "I'm sorry, but I can't help with that."
    """The response that unsafe rows without a response are trained to give."""
    max_length: Annotated[int, Interval(ge=8, lt=2**31)] = 1024
    """Maximum length of a row in tokens, prompt and response together. A longer row is cut at the start of its prompt;
    only when one prompt token is left, at the end of its response. The console says how many rows were cut."""
    chat_template: Path | None = None
    """A file with a Jinja chat template to use instead of the tokenizer's own. None: the tokenizer's."""
    template_date: Text = "2025-01-01"
    """The date that the chat template sees when it asks for today's date, as YYYY-MM-DD. It is fixed, so that the same
    rows give the same tokens on every day."""
    template_kwargs: tuple[Text, ...] = ()
    """Extra variables for the chat template, each as name=value; the value is JSON, or else plain text. Set
    enable_thinking=false for reasoning models whose template knows this variable, because responses are trained without
    a thinking part."""
    packing: bool = False
    """Lay the rows of a forward pass end to end, without padding, when counting given tokens, in training, and when
    evaluation scores given answers; each row still sees only itself. Most model types can; a run of one that cannot is
    refused, and docs/families.md says which. Answers are generated from padded prompts. Without model.attention
    flash_attention_2 or flex_attention, attention takes time with the square of a pass's tokens: keep
    micro_batch_tokens small then."""


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    batch_size: Annotated[int, Interval(ge=2, lt=2**31)] = 16
    """Rows in a batch, safe and unsafe rows together. Larger batches identify experts more reliably."""
    safe_ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """Fraction of a batch's rows that are safe, rounded to whole rows. A batch needs at least one row of each label."""


CONTROLS = [name for name, rule in RULES.items() if rule.is_control]

if TYPE_CHECKING:

    @dataclass(kw_only=True, slots=True)
    class RuleSettings:
        rule: str = ""

else:
    RuleSettings = chosen_settings(
        "RuleSettings",
        "rule",
        RULES,
        "threshold_top_k",
        "Rule that selects each batch's experts; docs/statistics.md describes them all. Some are controls, which "
        f"select other experts on purpose, to compare with: {', '.join(sorted(CONTROLS))}.",
    )


@dataclass(kw_only=True, slots=True)
class AnalysisConfig(RuleSettings):
    tokens: Literal["content", "prompt", "completion", "all", "span", "generated"] = "content"
    """Which tokens of a row have their routing counted. Padding is never counted. content: tokens of the prompt's
    messages, without those that only the chat template adds. prompt: the whole prompt, with the chat template's tokens.
    completion: the response and the token that ends it. all: prompt and response. span: the tokens of the text in the
    row's `span` column; rows without a span are left out. generated: the tokens of an answer that the model generates
    itself, except its last, which is never fed back to the model."""
    max_new_tokens: Count = 64
    """Maximum length in tokens of the answers that `tokens: generated` lets the model generate."""
    temperature: NonNegative = 0.0
    """Sampling temperature of those answers. 0: greedy decoding. Above 0: sampled, reproducibly from `seed`."""
    gates: bool = True
    """Also store, for each prompt and expert, the sum of the routing weights. The rule esft_gate needs it."""
    micro_batch_tokens: Count = 8192
    """Maximum number of tokens in one forward pass, padding included. Lower it when memory runs out. Rows of similar
    length share a pass; a row that is longer than this has a pass to itself. In bfloat16 the value can change a few
    counts, because rounding decides near ties between two experts; analysis.dtype float32 avoids that."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Data type of the model while it counts; the weights are converted when they are loaded. None: model.dtype.
    float32 makes counts practically independent of how rows are grouped, and takes twice the memory of bfloat16."""
    ep_size: Count = 1
    """Number of ranks that together hold one copy of the model's experts while counting (expert parallelism). 1: every
    rank holds the whole model. Raise it when the model does not fit on one GPU. It must divide the world size, and must
    be 1 with a rule that needs gradients."""
    part: Text | None = None
    """Split the analysis over N independent jobs: I/N does the I-th share, such as 3/8. Start every job twice, in any
    order: the first round counts, the second selects experts, and the last job finishes the result, which is the same
    as a single job's. None: do everything that is left."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    masks: Text | None = None
    """Mask store to train with: a directory, or a URL that fsspec can read. None: masks.zarr in run_dir. Masks that
    `dist-moe select --out NAME` wrote are in RUN_DIR/NAME.zarr."""
    revisions: tuple[Text, ...] = ()
    """Change the masks during training. Each item is STEP:STORE, such as 40:masks.r1.zarr: after step 40, each batch
    has its mask from that store, which must hold the same batches. Experts that remain in the union of the batches'
    masks keep their optimizer state, new ones start with none, and those that leave keep the weights they have reached.
    """
    mode: Literal["route", "update"] = "route"
    """What tokens can be routed to during training; in both modes only the experts of the batch's mask are updated.
    route: the mask's experts only, as `fill` and `scope` say. update: any expert; routing is not changed. With `route`,
    the model is trained in a state in which it is not used later, because inference has no mask; compare both."""
    fill: Literal["natural", "shrink", "best", "bias"] = "natural"
    """For mode `route`: how the mask restricts routing. A layer in which the mask has no expert is never restricted.
    natural: each token chooses experts as without a mask; of its choice only the mask's experts stay active, and a
    token that chose none of these keeps its choice. shrink: only the mask's experts can be chosen, so a token may go to
    fewer than k experts (k: the model's experts per token). best: like shrink, but free places up to k go to the other
    experts with the highest router logits; those stay frozen. bias: every expert can be chosen, but route_bias is added
    to the router logits of the mask's experts."""
    scope: Literal["all", "unsafe"] = "all"
    """For mode `route`: the rows of a batch that are routed under the mask. all: all rows. unsafe: the unsafe rows;
    safe rows are routed without a mask."""
    trains: Trains = "experts"
    """What is trained; all else is frozen, bit for bit. experts: those of the batch's mask. routers: of all MoE layers,
    the weight that scores the experts, with its bias if it has one, and no expert. experts_and_routers: both.
    experts_and_dense: the mask's experts and every weight that is no expert's (attention, embeddings, norms, routers,
    shared experts); with masks of the rule every_expert this is full fine-tuning. It needs the engine local, that is
    one process."""
    rounds: tuple[Text, ...] = ()
    """For `trains: experts_and_routers`: take turns. Each item is experts:STEPS or routers:STEPS, such as experts:20
    routers:10: 20 steps train the experts, then 10 the routers, and so on to the end of the run. What a step does not
    train keeps its weights and its optimizer state. Empty: every step trains both."""
    route_bias: Positive = 3.0
    """For `fill: bias`: the number that is added to the router logits of the mask's experts."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    epochs: Count = 1
    """Number of passes over all batches. An optimizer step is taken for each batch."""
    max_tokens: Count | None = None
    """End the run after the first step with which it has trained at least so many tokens, so that runs can be compared
    at one budget. All tokens of a step's rows count, of prompts and responses, but no padding, no `rejected` answers,
    and no token twice for a term that takes another forward pass. `train.epochs` must have as many. The learning-rate
    schedule ends there too. None: the run ends with its last epoch."""
    weights: tuple[Text, ...] = ()
    """By what the loss of a batch is multiplied, each as NAME=NUMBER, such as privacy=2; NAME is a category, or the id
    of a batch, which comes before its category. Batches that are not named have 1."""
    repeats: tuple[Text, ...] = ()
    """How often a batch is trained in an epoch, each as NAME=COUNT, with names as for `weights`. Batches that are not
    named: once."""
    adjust: AdjustConfig = field(default_factory=AdjustConfig)
    lr: Positive = 1e-5
    """Peak learning rate."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay. It applies to an expert only in the steps in which it is updated."""
    max_norm: NonNegative = 1.0
    """Maximum gradient norm, taken over all experts that the step updates; larger gradients are scaled down. 0: no
    clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up. constant: stays at the peak. linear, cosine: falls to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Number of steps over which the learning rate rises linearly from 0 to its peak."""
    audit: NonNegativeInt = 100
    """Every how many steps to verify that nothing outside the batch's mask has changed, by checksums of all weights and
    of the optimizer state before and after the step; the first and the last step are always verified. Such a step takes
    about twice as long. 0: never."""
    trackers: tuple[Text, ...] = ("console",)
    """Where to report each step, in addition to metrics.jsonl, which is always written. console: one line a step.
    csv: the table steps.csv in the run directory. tensorboard, wandb, trackio, mlflow, aim: services, each with a
    package of its own that has to be installed; docs/operating.md says more."""
    plan: Literal["auto", "always", "never"] = "auto"
    """Whether to compare the memory that the run takes with what `dist-moe plan` says, and write both to plan.json in
    run_dir. auto: if the model has at least 1 GB. On a CPU the first step is measured, and takes longer for it."""
    micro_batch_size: Count | None = None
    """Maximum number of rows that a rank passes through the model at once; gradients of a batch are accumulated over
    such passes. None: all the batch's rows on this rank, which are more where they are shorter. Rows of similar length
    share a pass. Lower it when memory runs out."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    compile: bool = False
    """Let torch's compiler make attention, norms and all else of a layer that has no experts faster, in training steps
    alone. Each start takes half a minute longer. It rounds in other places, so a run is resumed with the same value."""
    deepspeed_config: Path | None = None
    """A DeepSpeed JSON file for the engine deepspeed; ds_configs/ has examples. Settings that dist_moe sets itself,
    such as the optimizer and the batch size, are refused in it."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    ep_size: Count | Literal["auto"] | None = None
    """Number of ranks over which one copy of the experts is split in training (expert parallelism). It must divide the
    world size. None: all ranks. Smaller values make several data-parallel replicas of the experts; an expert's
    optimizer state is still on one rank only. auto: the smallest for which `dist-moe plan` finds room on every rank's
    device, so that as few tokens as possible are exchanged; the log says which, and a run that is resumed keeps it."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where the optimizer state is kept and updated. none: on the device of the weights. cpu: in CPU memory, which
    saves GPU memory; gradients and new weights are copied in every step."""
    placement: Literal["balanced", "contiguous"] = "balanced"
    """How training splits each layer's experts over ranks. balanced: every rank has the same number of trained experts,
    and those of one batch are spread over as many ranks as possible. contiguous: equal blocks of experts in the order
    of their numbers."""
    timeout: Annotated[float, Interval(ge=10, lt=2**31)] = 300.0
    """In seconds: a rank that gives no sign of life for so long is lost, as when its host has lost its network. The
    others, in analysis, training and evaluation, then end with a line that names it; what each was doing is in its
    log. A signal that stops all ranks together loses none."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every: NonNegativeInt = 0
    """Save a checkpoint every so many steps, to resume from. 0: only when the run is asked to stop."""
    keep: Count = 2
    """Number of checkpoints to keep; older ones are deleted."""
    asynchronous: bool = False
    """Write checkpoints in the background while training goes on. Until a checkpoint is written, it holds a copy of the
    optimizer state in CPU memory."""
    resume: Literal["auto", "never"] = "auto"
    """What to do when run_dir holds an unfinished training run. auto: resume from its last complete checkpoint. never:
    stop with an error."""


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    max_new_tokens: Count = 24
    """Maximum length in tokens of the greedy answers that are checked for a refusal."""
    micro_batch_tokens: Count = 8192
    """Maximum number of tokens in one forward pass, padding and the answers to be generated included. Lower it when
    memory runs out."""
    ep_size: Count = 1
    """Number of ranks that together hold one copy of the model's experts during evaluation (expert parallelism). 1:
    every rank holds the whole model. Raise it when the model does not fit on one GPU. It must divide the world size.
    Above 1, rounding can differ slightly, and with it a generated answer."""
    judges: Annotated[tuple[Text, ...], MinLen(1)] = ("phrases",)
    """Judges that say whether an answer is a refusal. The tables show the first judge's rates; with several judges,
    the rates of each and how often they disagree are reported too."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    resamples: Count = 2000
    """Number of bootstrap resamples of prompts for the intervals of losses, KL divergence, answer lengths and AUC."""
    near_equal: Share = 0.8
    """Two prompts count as nearly equal when the Jaccard similarity of their sets of character 5-grams is at least
    this. Evaluated rows whose prompt is nearly equal to a trained one are reported in a table of their own."""


@dataclass(kw_only=True, slots=True)
class Config:
    run_dir: Path
    """Directory for everything that this run writes: configuration, counts, masks, metrics, checkpoints, trained
    experts and evaluation."""
    model: ModelConfig
    data: DataConfig
    batches: BatchConfig = field(default_factory=BatchConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    engine: Literal["auto", "local", "deepspeed", "fsdp"] = "auto"
    """What runs the training steps. auto: deepspeed if a launcher (deepspeed, torchrun) has started the process, else
    local. local: one process, plain PyTorch. deepspeed: many processes; the dense (non-expert) weights are replicated,
    or sharded by ZeRO-3. fsdp: many processes; the dense weights are sharded by FSDP2."""
    seed: NonNegativeInt = 0
    """Seed of everything random: how rows are put into batches, the order of batches, sampling, resampling."""
    overwrite: bool = False
    """Replace the results of an earlier run in run_dir; the old ones are removed once the new ones are complete.
    Without it, existing results are an error."""
    rehash: bool = False
    """Read all weights again to compute the model's hash. Without it, a hash that was stored beside the model is reused
    while the sizes and modification times of its files are unchanged."""
