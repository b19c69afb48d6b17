"""Checks that the types and shapes of a store's arrays fit together. Correct digests alone do not show that."""

from dist_moe.errors import shown
from dist_moe.store.files import CheckedFiles, damaged
from dist_moe.store.layout import COUNTS, MASKS, Kind, decode_texts, prompt_array, statistic_array
from dist_moe.store.root import Attributes, CountsAttributes, MaskAttributes
from dist_moe.store.rows import StoredRows

Axes = tuple[str | int, ...]
"""B: batches, P: prompts, S: largest number of prompts in a batch, L: layers, E: experts, e: bytes of a packed mask
row, T: bytes of text."""
FREE: dict[Kind, dict[str | int, tuple[str, int]]] = {
    COUNTS: {"B": ("prompt_counts", 0), "P": ("prompt_batch", 0), "S": ("prompt_counts", 1)},
    MASKS: {"B": ("masks", 0)},
}
"""Sizes that are taken from an array: its name, and the axis."""
NUMBERS = ("float32", "int32")


class Shapes:
    """The arrays of one store; each is checked when it is first read."""

    def __init__(self, files: CheckedFiles, attributes: Attributes, kind: Kind) -> None:
        self._free = FREE[kind]
        self._files, self._checked = files, set[str]()
        experts = attributes.num_experts
        self._sizes: dict[str | int, int] = {"L": len(attributes.layer_names), "E": experts, "e": -(-experts // 8)}
        self._kinds = _kinds(attributes)

    def array(self, name: str) -> StoredRows:
        """An array, as `CheckedFiles.array` returns it.

        Raises:
            UserError: it is damaged, or its type or shape does not fit the other arrays and the attributes.
        """
        rows = self._files.array(name)
        if name not in self._checked:
            self._check(name, rows)
            self._checked.add(name)
        return rows

    def size(self, axis: str | int) -> int:
        """Length of an axis."""
        if isinstance(axis, int):
            return axis
        if axis not in self._sizes:
            name, place = self._free.get(axis, ("batch_ids", 0))
            self._sizes[axis] = self.array(name).shape[place] if axis in self._free else len(self.texts(name))
        return self._sizes[axis]

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of texts.

        Raises:
            UserError: the array holds something else.
        """
        texts = decode_texts(self.array(name)[:])
        if texts is None:
            raise damaged(self._files.source.place, f"array {name} is not a JSON list of text")
        return texts

    def _check(self, name: str, rows: StoredRows) -> None:
        types, forms = self._kinds[name]
        found = f"{rows.dtype.name} {shown(list(rows.shape))}"
        form = next((form for form in forms if len(form) == len(rows.shape)), None)
        if form is None or rows.dtype.name not in types:
            expected = " or ".join(f"{len(form)} axes" for form in forms)
            raise damaged(
                self._files.source.place, f"array {name} is {found}: expected {' or '.join(types)}, {expected}"
            )
        for place, axis in enumerate(form):
            if axis == "T" or self._free.get(axis) == (name, place):
                continue
            if rows.shape[place] != self.size(axis):
                expected = f"axis {place} to be {self.size(axis)}"
                raise damaged(self._files.source.place, f"array {name} is {found}: expected {expected}")


def _kinds(attributes: Attributes) -> dict[str, tuple[tuple[str, ...], tuple[Axes, ...]]]:
    """The data types and the axes that each array may have."""
    matrix: tuple[Axes, ...] = (("B", "L", "E"),)
    texts = dict.fromkeys(("batch_ids", "batch_categories", "prompt_ids"), (("uint8",), (("T",),)))
    if isinstance(attributes, MaskAttributes):
        return {
            **texts,
            "masks": (("uint8",), (("B", "L", "e"),)),
            "batch_prompts": (("int32",), (("B", 2),)),
            "batch_signs": (("int32",), (("B", 3),)),
            "batch_mask_hashes": (("uint8",), (("B", 32),)),
            **{statistic_array(name): (NUMBERS, (*matrix, ("B",))) for name in attributes.statistics},
        }
    assert isinstance(attributes, CountsAttributes)
    return {
        **texts,
        "prompt_counts": (("int32",), (("B", "S", "L", "E"),)),
        "prompt_tokens": (("int64",), (("B", "S"),)),
        "prompt_unsafe": (("bool",), (("P",),)),
        "prompt_batch": (("int32",), (("P",),)),
        "prompt_clusters": (("uint64",), (("P",),)),
        "prompt_pairs": (("uint64",), (("P",),)),
        "prompt_template_tokens": (("int32",), (("P",),)),
        **{prompt_array(name): (NUMBERS, (("B", "S", "L", "E"), ("B", "S"))) for name in attributes.tables},
    }
