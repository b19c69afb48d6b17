"""The root metadata of a store: read and checked without reading any array."""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from dist_moe.artefacts import checked
from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.store.files import ADVICE, damaged
from dist_moe.store.layout import COUNTS, FACTS, MASKS, ROOT_METADATA, Kind, prompt_array, root_digest, statistic_array
from dist_moe.store.plan import HASHES
from dist_moe.store.source import Source
from dist_moe.version import __version__

OF_BATCHES = frozenset({"batch_ids", "batch_categories"})
OF_COUNTS = OF_BATCHES | {"prompt_ids", "prompt_unsafe", "prompt_batch", "prompt_counts", "prompt_tokens"}
"""Arrays of every counts store."""
OF_MASKS = OF_BATCHES | {"masks", "batch_prompts", "batch_signs", "batch_mask_hashes"}
"""Arrays of every mask store."""
KINSHIP = frozenset({"prompt_clusters", "prompt_pairs"})
"""Arrays of a counts store that knows which rows repeat a prompt, and which are pairs."""
TEMPLATE = "prompt_template_tokens"
"""Array of a counts store that knows how many counted tokens belong to the chat template."""
Size = Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """Written last: the digest of each array, and one digest of the whole store."""

    arrays: dict[str, str]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How safe and unsafe prompts differ in one property: both means, and the p value of the difference."""

    safe: float
    unsafe: float
    p: float
    batches: list[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """What `dist_moe.store.facts` computed about the safe and the unsafe prompts (the two arms)."""

    level: float = 0.05
    prompts: int | None = None
    prompts_in_both_arms: int | None = None
    rows_of_prompts_in_both_arms: int | None = None
    batches_with_one_prompt_in_an_arm: int | None = None
    tokens: Difference | None = None
    template_share: Difference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Attributes that both kinds of store have; docs/formats.md describes each."""

    format_version: Size
    dist_moe_version: str
    counted_tokens: str
    experts_per_token: Size
    num_experts: Size
    layer_names: Annotated[list[str], MinLen(1)]
    provenance: dict[str, Any]
    complete: Complete

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the optional tables or statistics in this store."""
        return ()

    @property
    def arrays(self) -> frozenset[str]:
        """Names of the arrays that the store must have."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsAttributes(Attributes):
    """Attributes of a counts store."""

    tables: list[str] = field(default_factory=list)
    arms: Arms = field(default_factory=Arms)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tables)

    @property
    def arrays(self) -> frozenset[str]:
        """Optional arrays come in groups: a store has all arrays of a group, or none."""
        there = self.complete.arrays.keys()
        known = (names for names in (KINSHIP, {TEMPLATE}) if names & there)
        return OF_COUNTS.union(map(prompt_array, self.tables), *known)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskAttributes(Attributes):
    """Attributes of a mask store."""

    selection_rule: dict[str, Any]
    statistics: list[str] = field(default_factory=list)
    counts: str
    revision: Annotated[int, Ge(0)]
    previous: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.statistics)

    @property
    def arrays(self) -> frozenset[str]:
        return OF_MASKS.union(map(statistic_array, self.statistics))


OF_KIND: dict[Kind, type[Attributes]] = {COUNTS: CountsAttributes, MASKS: MaskAttributes}
AGAIN = {COUNTS: "count again", MASKS: "select or analyze again"}


def kind_at(source: Source) -> Kind:
    """The kind of the store. If there is none, or an unfinished one: MASKS, whose reader then reports that."""
    data = source.read(ROOT_METADATA)
    return COUNTS if data is not None and f'"{COUNTS.format}"'.encode() in data else MASKS


def read_root(source: Source, kind: Kind) -> tuple[dict[str, Any], Any]:
    """The attributes as JSON, and parsed to the type in `OF_KIND`.

    Raises:
        UserError: there is no store, or it is of another kind or format version, incomplete, damaged or contradictory.
    """
    place = source.place
    attributes = _attributes(place, _read(source, kind), kind)
    found = checked(OF_KIND[kind], attributes, f"{place} is damaged: {ROOT_METADATA}", ADVICE)
    for key in HASHES:
        if not isinstance(found.provenance.get(key), str):
            raise damaged(place, f"its provenance has no {key}")
    if type(found.provenance.get("seed", 0)) is not int:
        raise damaged(place, f"its provenance's seed is {shown(found.provenance['seed'])}: expected a whole number")
    if found.experts_per_token > found.num_experts:
        raise damaged(place, f"{found.experts_per_token} experts a token, of {found.num_experts} experts a layer")
    if odd := [name for name in found.names if not name.isidentifier()]:
        raise damaged(place, f"{shown(odd[0])} is no name of a statistic or table")
    if differing := sorted(found.complete.arrays.keys() ^ found.arrays):
        what = "there is no" if differing[0] in found.arrays else "there is an unknown"
        raise damaged(place, f"{what} array {shown(differing[0])}")
    if isinstance(found, MaskAttributes) and (found.revision == 0) != (found.previous is None):
        raise damaged(place, f"it is revision {found.revision}, and the one before is {shown(found.previous)}")
    return attributes, found


def _read(source: Source, kind: Kind) -> bytes:
    place = source.place
    data = source.read(ROOT_METADATA)
    if data is not None:
        return data
    if source.read(FACTS) is not None:
        raise UserError(
            f"{place} is incomplete, because writing it was interrupted: run the analysis again, which resumes it"
        )
    if not source.exists():
        first = "`dist-moe count`" if kind is COUNTS else "the analysis"
        raise UserError(f"no {kind.name} at {place}: check the path, or run {first} first")
    raise UserError(f"{place} is not a {kind.name}: expected a Zarr v3 group, a directory with {ROOT_METADATA} in it")


def _attributes(place: str, data: bytes, kind: Kind) -> dict[str, Any]:
    with refused_by_library(f"{place} is damaged: {ROOT_METADATA} is not JSON", ADVICE, (ValueError, RecursionError)):
        root = json.loads(data)
    attributes = root.get("attributes", {}) if isinstance(root, dict) else {}
    if not isinstance(attributes, dict) or attributes.get("format") != kind.format:
        raise UserError(f"{place} is not a {kind.name}: its {ROOT_METADATA} does not say format {kind.format!r}")
    version = attributes.get("format_version")
    if isinstance(version, int) and version > kind.version:
        raise UserError(
            f"{place} has format version {version}, this dist_moe {__version__} reads {kind.version}: update dist_moe, "
            f"or {AGAIN[kind]}"
        )
    if isinstance(version, int) and version < kind.version:
        raise UserError(
            f"{place} has format version {version}, which an older dist_moe wrote and this one, {__version__}, does "
            f"not read: {AGAIN[kind]}"
        )
    if "complete" not in attributes:
        raise UserError(
            f"{place} is incomplete, because writing it was interrupted: remove it and run the analysis again"
        )
    complete = attributes["complete"]
    if not isinstance(complete, dict) or root_digest(root, complete.get("arrays")) != complete.get("digest"):
        raise damaged(place, f"{ROOT_METADATA} has changed since it was written")
    return attributes
