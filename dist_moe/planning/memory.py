"""Memory that one rank needs to train: of what is there from the first step to the last, and of the passes of a step.

Sizes of weights, gradients and optimizer state follow from shapes. What passes keep comes from the `Outline`, which has
traced them on one rank; here is added what depends on masks and ranks (moe/exchange.py, training/optimizer.py).
Where a size depends on the routing, it is the largest that there can be on one rank, and `IMBALANCE` on several.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from dist_moe.planning.outline import Layers, Outline
from dist_moe.planning.share import Share

LIMIT = 1 << 25
"""Logits in a part (training/parts.py), which a test compares."""
STATE_BYTES = 12
"""Of master weight and two moments, for each parameter (training/adam.py)."""
GRADIENT_BYTES = 4
IMBALANCE = 1.25
"""The rank with most rows gets so many times the mean, where ranks share experts."""
INDEX_BYTES = 25
"""Of a token and an expert that it may have here: the expert, and where its row is (moe/experts.py)."""
AUDIT_BYTES = 8 << 20
"""Of its factors and products (training/audit.py), before and after a step."""
MARGIN = {2: 1.15, 4: 1.05}
"""For what is not accounted for, by the bytes of a weight; of the largest error that was seen on the fake GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a run is spread over ranks, and what passes through the model at once."""

    num_ranks: int
    ep_size: int
    shards_dense: bool = False
    """Whether each rank keeps only its part of the dense weights."""
    offloads: bool = False
    """Whether the optimizer state is in the host's memory."""
    checkpointing: bool = False
    batch_size: int = 16
    micro_batch_size: int | None = None
    """Rows that a rank passes at once; None: all it has of a batch."""
    row_tokens: int
    """Of the longest row."""
    answer_tokens: int
    """Those of them that are trained."""
    sequences: int = 1
    """Of a row: 2 if a rejected answer is read too."""
    live_tokens: int | None = None
    """Of all rows of a pass at most, without padding; None: all rows are as long as the longest."""
    loss_tokens: int | None = None
    """Of all rows of a pass at most, those that are trained; None: all rows have `answer_tokens`."""
    masks_rows: bool = False
    """Whether the rows of a pass are packed, and kept apart by a mask: numbers for all pairs of their tokens."""
    audits: bool = True
    needs_base: bool = False
    """Whether a term of the objective compares with the base model."""
    dense_parameters: int = 0
    """Dense weights that are trained too."""

    @property
    def num_replicas(self) -> int:
        return self.num_ranks // self.ep_size

    @property
    def rows(self) -> int:
        """Of a batch, on a rank."""
        return ceil(self.batch_size / self.num_ranks)

    @property
    def at_once(self) -> int:
        """Rows in one pass."""
        return min(self.micro_batch_size or self.rows, self.rows)

    def live(self, tokens: int) -> int:
        """Of so many positions of a pass, those that experts compute on: no padding."""
        return _at_most(tokens, self.live_tokens)

    def arriving(self, top_k: int) -> float:
        """Tokens that arrive at a rank, for each of its own, as each goes once to every rank that has experts of it."""
        if self.ep_size == 1:
            return 1.0
        return min(top_k, self.ep_size, IMBALANCE * ranks_of_token(top_k, self.ep_size))

    @property
    def num_passes(self) -> int:
        """Of a step."""
        return ceil(self.rows / self.at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on one rank's device, but for `host`."""

    weights: int
    gradients: int
    state: int
    originals: int
    """Copies of the base model's experts, for terms that compare with it."""
    gathered: int
    """Sharded weights while they are used."""
    activations: int
    """What passes keep and compute with, the losses', and what an update exchanges."""
    host: int
    """In the host's memory: optimizer state that is kept there, and experts while they are loaded."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state + self.originals + self.gathered + self.activations


def training_memory(outline: Outline, setup: Setup, share: Share) -> Memory:
    """What a rank with this share needs."""
    experts = share.held * outline.expert_bytes
    dense = ceil(outline.dense_bytes / setup.num_ranks) if setup.shards_dense else outline.dense_bytes
    state = state_bytes(outline, setup) * (share.owned * outline.expert_parameters + setup.dense_parameters)
    gradients = GRADIENT_BYTES * (share.num_active * outline.expert_parameters + setup.dense_parameters)
    copies = share.trained * outline.expert_bytes + setup.dense_parameters * outline.item_bytes
    return Memory(
        weights=dense + experts,
        gradients=gradients,
        state=0 if setup.offloads else state,
        originals=copies if setup.needs_base else 0,
        gathered=outline.outside_bytes + 2 * outline.largest_layer_bytes if setup.shards_dense else 0,
        activations=ceil(
            MARGIN[outline.item_bytes] * max(_of_passes(outline, setup, share), _of_update(outline, setup, share))
        ),
        host=experts + (state if setup.offloads else 0),
    )


def state_bytes(outline: Outline, setup: Setup) -> int:
    """For each parameter: weights in float32 are their own master weights, unless the state is kept elsewhere."""
    return STATE_BYTES - (4 if outline.item_bytes == 4 and not setup.offloads else 0)


def ranks_of_token(top_k: int, ep_size: int) -> float:
    """On how many ranks a token's experts are in the mean, if it chooses all alike."""
    return ep_size * (1 - (1 - 1 / ep_size) ** top_k)


def counting_memory(outline: Outline, ep_size: int, tokens: int, *, masks_rows: bool = False) -> int:
    """Bytes that a rank needs to count routing, with so many tokens in a pass. `masks_rows` as in `Setup`."""
    share = ceil(outline.num_layers * outline.num_experts / ep_size) * outline.expert_bytes
    spread = 1.0 if ep_size == 1 else IMBALANCE
    rows = 2 * tokens * outline.top_k * outline.hidden_size * outline.item_bytes if ep_size > 1 else 0
    mask = tokens * tokens * (1 + outline.item_bytes) if masks_rows else 0
    return outline.dense_bytes + share + mask + ceil(spread * (outline.spare_forward * tokens + rows))


def _of_passes(outline: Outline, setup: Setup, share: Share) -> float:
    rows, length = setup.at_once * setup.sequences, setup.row_tokens
    if outline.rows_alone:
        rows = 1
    tokens = rows * length
    live = setup.live(tokens)
    padding = (tokens - live) * outline.top_k * outline.up_width * outline.item_bytes  # which experts leave out
    by_layer = _by_layer(outline.layers)
    of_masks = iter(_kept(outline, setup, live, active) - padding for active in share.active)
    pairs = tokens * tokens if setup.masks_rows else 0
    kept = [
        (each.kept(rows, length) + outline.item_bytes * pairs, next(of_masks) if each.is_moe else 0.0)
        for each in by_layer
    ]
    first = _decoder_layer(by_layer, share.first_layer)
    if not setup.dense_parameters:  # nothing before the experts of the first layer has a gradient
        kept[first] = (min(kept[first][0], _kept_by_experts(outline, tokens)), kept[first][1])
    all_kept = [sum(each) for each in kept[first:]]
    if setup.checkpointing:
        hidden = tokens * outline.hidden_size * outline.item_bytes
        total = hidden * (len(all_kept) + 1) + max(all_kept)
    else:
        total = sum(all_kept)
    spare = max(_losses(outline, setup, rows), _spare(outline, setup, share, rows))
    return outline.before(rows, length) + pairs + total + spare


def _kept(outline: Outline, setup: Setup, tokens: int, active: int) -> float:
    """What a MoE layer keeps on top of what the outline has."""
    pairs, item = tokens * outline.top_k, outline.item_bytes
    received, arriving = pairs * _spread(setup), tokens * setup.arriving(outline.top_k)
    rows = (received - pairs) * (outline.up_width * item + 8)
    places = (arriving - tokens) * outline.top_k * (INDEX_BYTES + item)
    back = 0 if setup.ep_size == 1 else 17 * tokens * min(outline.top_k, setup.ep_size)
    return rows + places + back + min(received, arriving * active) * (outline.hidden_size * item + 8)


def _kept_by_experts(outline: Outline, tokens: int) -> float:
    """Of what a layer keeps in the outline, the part of its experts and of what comes after them."""
    pairs, row = tokens * outline.top_k, outline.hidden_size * outline.item_bytes
    return pairs * (outline.up_width * outline.item_bytes + 2 * INDEX_BYTES) + 2.5 * tokens * row


def _spare(outline: Outline, setup: Setup, share: Share, rows: int) -> float:
    """What the backward pass of a MoE layer holds for a while: at its end, or where gradients of weights are made."""
    tokens, row = setup.live(rows * setup.row_tokens), outline.hidden_size * outline.item_bytes
    received, active = tokens * outline.top_k * _spread(setup), max(share.active)
    arriving = tokens * setup.arriving(outline.top_k)
    base = max(cost(rows, setup.row_tokens) for cost in outline.spare) * _spread(setup)
    base += 0 if setup.ep_size == 1 else 2 * arriving * (row + 2 * outline.top_k * outline.item_bytes)
    trained = min(received, arriving * active)
    largest = max(map(prod, outline.expert_shapes.values()))
    products = active * largest * (GRADIENT_BYTES + (outline.item_bytes if outline.item_bytes < GRADIENT_BYTES else 0))
    between = trained * (row + 2 * outline.width * outline.item_bytes) + products
    return max(base + trained * row, base - received * row + between)


def _losses(outline: Outline, setup: Setup, rows: int) -> float:
    """Logits at the loss tokens, and what the losses make of them (training/parts.py)."""
    item = outline.item_bytes
    values = _at_most(rows * setup.answer_tokens, setup.loss_tokens) * outline.vocab_size
    in_float = 12 if not setup.needs_base else 24
    copies = item if item < 4 else 0
    logits = item * (2 if setup.needs_base else 1)
    if values <= LIMIT:
        return values * (logits + in_float + copies)
    return values * (logits + 2 * item) + LIMIT * (in_float + copies)


def _of_update(outline: Outline, setup: Setup, share: Share) -> float:
    """What the optimizer holds for a while, after the passes."""
    numbers = share.num_active * outline.expert_parameters
    exchanged = 0 if setup.num_replicas == 1 else numbers * (2 * GRADIENT_BYTES + 2 * outline.item_bytes)
    return max(exchanged + 8 * outline.expert_parameters, AUDIT_BYTES if setup.audits else 0)


def _spread(setup: Setup) -> float:
    return 1.0 if setup.ep_size == 1 else IMBALANCE


def _by_layer(layers: list[Layers]) -> list[Layers]:
    """Each decoder layer."""
    return [each for each in layers for _ in range(each.number)]


def _decoder_layer(by_layer: list[Layers], moe_layer: int) -> int:
    """The number of a MoE layer among all decoder layers."""
    return [number for number, each in enumerate(by_layer) if each.is_moe][moe_layer]


def _at_most(number: int, limit: int | None) -> int:
    """None: there is no limit."""
    return number if limit is None else min(number, limit)
