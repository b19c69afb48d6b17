"""A store's root: what it says of itself, read and checked without a look at its arrays."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from dist_moe import __version__
from dist_moe.artefacts import checked
from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.store.files import ADVICE, damaged
from dist_moe.store.layout import FACTS, FORMAT, ROOT_METADATA, VERSION, prompt_array, root_digest, statistic_array
from dist_moe.store.source import Source

HASHES = ("model_hash", "tokenizer_hash", "data_hash")
ARRAYS = frozenset(
    {"masks", "risk_diff", "a_safe_n", "a_unsafe_n", "prompt_ids", "prompt_unsafe", "prompt_batch", "prompt_counts"}
    | {"prompt_tokens", "batch_ids", "batch_categories", "batch_num_unsafe_experts", "batch_mask_hashes"}
)
"""Those of every store."""
OF_PROMPTS = frozenset({"prompt_clusters", "prompt_pairs"})
"""Of a store that knows which rows are of one prompt."""
TEMPLATE = "prompt_template_tokens"
"""Of a store that knows which counted tokens are the chat template's."""
Size = Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """The digest of each array, and the one over all."""

    arrays: dict[str, str]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of the arms in one thing."""

    safe: float
    unsafe: float
    p: float
    batches: list[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """What `dist_moe.store.facts` says of the arms."""

    level: float = 0.05
    prompts: int | None = None
    prompts_in_both_arms: int | None = None
    rows_of_prompts_in_both_arms: int | None = None
    batches_with_one_prompt_in_an_arm: int | None = None
    tokens: Difference | None = None
    template_share: Difference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The root's attributes that are read; docs/formats.md says what each is."""

    format_version: Size
    dist_moe_version: str
    selection_rule: dict[str, Any]
    counted_tokens: str
    experts_per_token: Size
    num_experts: Size
    layer_names: Annotated[list[str], MinLen(1)]
    statistics: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    provenance: dict[str, Any]
    arms: Arms = field(default_factory=Arms)
    complete: Complete

    @property
    def arrays(self) -> frozenset[str]:
        """The arrays that there must be: what a store need not know has all of its arrays, or none."""
        there = self.complete.arrays.keys()
        known = (names for names in (OF_PROMPTS, {TEMPLATE}) if names & there)
        return ARRAYS.union(map(statistic_array, self.statistics), map(prompt_array, self.tables), *known)


def read_root(source: Source) -> tuple[dict[str, Any], Attributes]:
    """The attributes as they stand there, and as they are read.

    Raises:
        UserError: there is no store, it is not ours, newer, incomplete or damaged, or says what no store says.
    """
    place = source.place
    attributes = _attributes(place, _read(source))
    found = checked(Attributes, attributes, f"{place} is damaged: {ROOT_METADATA}", ADVICE)
    for key in HASHES:
        if not isinstance(found.provenance.get(key), str):
            raise damaged(place, f"its provenance has no {key}")
    if found.experts_per_token > found.num_experts:
        raise damaged(place, f"{found.experts_per_token} experts a token, of {found.num_experts} experts a layer")
    if odd := [name for name in (*found.statistics, *found.tables) if not name.isidentifier()]:
        raise damaged(place, f"{shown(odd[0])} is no name of a statistic or table")
    if differing := sorted(found.complete.arrays.keys() ^ found.arrays):
        what = "there is no" if differing[0] in found.arrays else "there is an unknown"
        raise damaged(place, f"{what} array {shown(differing[0])}")
    return attributes, found


def _read(source: Source) -> bytes:
    place = source.place
    data = source.read(ROOT_METADATA)
    if data is not None:
        return data
    if source.read(FACTS) is not None:
        raise UserError(
            f"{place} is incomplete, its writing was stopped: run the analysis again, which goes on with it"
        )
    if not source.exists():
        raise UserError(f"no mask store at {place}: check the path, or run the analysis first")
    raise UserError(f"{place} is no mask store: expected a Zarr v3 group, a directory with {ROOT_METADATA} in it")


def _attributes(place: str, data: bytes) -> dict[str, Any]:
    with refused_by_library(f"{place} is damaged: {ROOT_METADATA} is no JSON", ADVICE, (ValueError, RecursionError)):
        root = json.loads(data)
    attributes = root.get("attributes", {}) if isinstance(root, dict) else {}
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise UserError(f"{place} is no mask store: its {ROOT_METADATA} does not say format {FORMAT!r}")
    version = attributes.get("format_version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{place} has format version {version}, this dist_moe {__version__} reads up to "
            f"{VERSION}: update dist_moe, or run the analysis again"
        )
    if isinstance(version, int) and version < VERSION:
        raise UserError(
            f"{place} has format version {version}, which an older dist_moe wrote and this one, {__version__}, does "
            "not read: run the analysis again"
        )
    if "complete" not in attributes:
        raise UserError(f"{place} is incomplete, its writing was stopped: remove it and run the analysis again")
    complete = attributes["complete"]
    if not isinstance(complete, dict) or root_digest(root, complete.get("arrays")) != complete.get("digest"):
        raise damaged(place, f"{ROOT_METADATA} is not as it was written")
    return attributes
