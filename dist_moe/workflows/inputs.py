"""What analysis, training and evaluation all start from: prompts, tokens, batches, and the hashes of their origin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dist_moe.config.schema import Config
from dist_moe.data.batches import BatchPlan, describe, plan_batches
from dist_moe.data.rows import PromptSet, read_prompts
from dist_moe.data.tokens import Encoded, EncodedSet, Truncation, encode, pad_token_id, tokenizer_hash
from dist_moe.errors import UserError
from dist_moe.moe.checkpoint import model_hash
from dist_moe.moe.model import check_model_dir


@dataclass(frozen=True, slots=True)
class Inputs:
    """The same on all ranks."""

    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    encoded: EncodedSet
    plan: BatchPlan
    pad_id: int
    model_hash: str
    tokenizer_hash: str

    @property
    def facts(self) -> dict[str, object]:
        """What must be the same on all ranks."""
        return {
            "the number of rows": len(self.prompts.prompts),
            "the data's hash": self.prompts.data_hash,
            "the model's hash": self.model_hash,
            "the tokenizer's hash": self.tokenizer_hash,
            "the tokens' hash": sha256(repr(self.encoded.rows).encode()).hexdigest(),
            "the batches' hash": sha256(" ".join(batch.id for batch in self.plan.batches).encode()).hexdigest(),
        }

    def rows(self, batch: int) -> list[Encoded]:
        """The encoded rows of one batch, safe ones first."""
        return [self.encoded.rows[i] for i in self.plan.batches[batch].rows]


def read_inputs(config: Config, say: Callable[[str], None]) -> Inputs:
    """Read and check everything but the weights; tells what a user should know of the data."""
    check_model_dir(config.model.path)
    prompts = read_prompts(config.data.paths, config.data.refusal)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, local_files_only=True, trust_remote_code=False)
    template = None
    if config.data.chat_template is not None:
        if not config.data.chat_template.is_file():
            raise UserError(f"data.chat_template: no file {config.data.chat_template}")
        template = config.data.chat_template.read_text()
    encoded = encode(prompts.prompts, tokenizer, config.data.max_length, template)
    plan = plan_batches(prompts.prompts, config.batches.batch_size, config.batches.safe_ratio, config.seed)
    for line in (*prompts.notes, *_cuts(encoded.truncation), *describe(plan)):
        say(line)
    return Inputs(
        tokenizer=tokenizer,
        prompts=prompts,
        encoded=encoded,
        plan=plan,
        pad_id=pad_token_id(tokenizer),
        model_hash=model_hash(config.model.path),
        tokenizer_hash=tokenizer_hash(tokenizer, template),
    )


def _cuts(cut: Truncation) -> list[str]:
    """What was cut to data.max_length; a cut response or span is data that was lost, so it is always said."""
    lines = []
    if cut.num_prompts_cut:
        lines.append(f"rows whose prompt lost its start to data.max_length = {cut.max_length}: {cut.num_prompts_cut}")
    if cut.num_responses_cut:
        lines.append(f"rows whose response lost its end to data.max_length = {cut.max_length}: {cut.num_responses_cut}")
    if cut.num_spans_cut:
        lines.append(f"rows whose span lost tokens to data.max_length = {cut.max_length}: {cut.num_spans_cut}")
    return lines


def stop_ids(inputs: Inputs, model: PreTrainedModel) -> tuple[int, ...]:
    """Where an answer ends: the tokenizer's end, and those that the model's generation settings name."""
    named = model.generation_config.eos_token_id
    ids = {inputs.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return tuple(sorted(ids - {None}))
