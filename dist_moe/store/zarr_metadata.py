"""The zarr.json of an array, in the forms of Zarr v3 that are read here."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from dist_moe.artefacts import checked
from dist_moe.errors import UserError, shown
from dist_moe.files import parse_json

Size = Annotated[int, Ge(1)]
PLAIN, SHARDED, INDEX = ["bytes", "zstd"], ["sharding_indexed"], ["bytes", "crc32c"]
"""Names of the codecs of chunks, of files of many chunks, and of these files' index."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One step from values to bytes."""

    name: str
    configuration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Values that are encoded together."""

    chunk_shape: list[Size]


@dataclass(frozen=True, slots=True)
class Grid:
    """How an array is split into files."""

    name: Literal["regular"]
    configuration: Chunks


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a file is split into chunks."""

    chunk_shape: list[Size]
    codecs: list[Codec]
    index_codecs: list[Codec]
    index_location: Literal["end"] = "end"


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
    """What of it is read."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[Annotated[int, Ge(0)]]
    data_type: Literal["bool", "uint8", "uint64", "int32", "int64", "float32", "float64"]
    chunk_grid: Grid
    codecs: list[Codec]


@dataclass(frozen=True, slots=True)
class Found:
    """Type, shape and split of an array."""

    data_type: str
    shape: list[int]
    file_shape: list[int]
    chunk_shape: list[int]
    is_sharded: bool


def parsed(data: bytes, what: str) -> Found:
    """An array's metadata; `what` names the file in errors.

    Raises:
        UserError: it is no array's, or of another form than this package writes.
    """
    advice = "restore it from a copy"
    facts = parse_json(data.decode(errors="replace"), what)
    array = checked(ArrayMetadata, facts, f"{what} is no array's that this package writes", advice)
    file, codecs, is_sharded = array.chunk_grid.configuration.chunk_shape, array.codecs, _names(array.codecs) == SHARDED
    chunk = file
    if is_sharded:
        sharding = checked(Sharding, codecs[0].configuration, f"{what} has another sharding", advice)
        _require(sharding.index_codecs, INDEX, what, advice)
        chunk, codecs = sharding.chunk_shape, sharding.codecs
    _require(codecs, PLAIN, what, advice)
    if not array.shape or not file[1:] == chunk[1:] == array.shape[1:] or (is_sharded and chunk[0] != 1):
        raise UserError(f"{what} has chunks {shown(chunk)} in files {shown(file)}: only the first axis is split")
    return Found(array.data_type, array.shape, file, chunk, is_sharded)


def _names(codecs: list[Codec]) -> list[str]:
    return [codec.name for codec in codecs]


def _require(codecs: list[Codec], names: list[str], what: str, advice: str) -> None:
    """Raise unless these are the codecs, and values are little-endian."""
    found = _names(codecs)
    if found != names or codecs[0].configuration.get("endian", "little") != "little":
        raise UserError(f"{what} has the codecs {shown(found)}: expected little-endian {shown(names)}: {advice}")
