"""What an older pickle is, and how it was made: which sign, which order, and whether its parts agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dist_moe.errors import UserError, shown
from dist_moe.stats.frames import lists_frame
from dist_moe.store.pickles.decode import Decoder
from dist_moe.store.pickles.machine import read_pickle

ARMS = (("a1", "d1", "a2", "d2"), ("a_safe", "d_safe", "a_unsafe", "d_unsafe"))
EXPERTS = "batch_unsafe_experts"
COLUMNS = ("layer", "expert", "risk_diff")
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Older:
    """The contents of an older pickle, and what was found out about them, one sentence each."""

    path: Path
    table: pd.DataFrame | None
    """All experts over all batches: the activation table, or the aggregated risk_diff."""
    batches: tuple[tuple[tuple[int, int], ...], ...]
    """Each batch's unsafe experts as (layer, expert), in the file's order; none in an activation table."""
    contents: dict[str, Any]
    """All else that the file has."""
    findings: tuple[str, ...]

    @property
    def experts(self) -> pd.DataFrame:
        """One line for each batch and unsafe expert, as `lists_frame`."""
        return lists_frame(self.batches)


def read_older(path: Path) -> Older:
    """Read an older pickle without running anything in it.

    Raises:
        UserError: there is no such file, it holds more than data, or it is neither of the two kinds.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    value = Decoder(str(path), len(data)).value(read_pickle(data, str(path)))
    if _is_table(value):
        _check_table(path, value)
        return Older(path, value, (), {}, (sign_of(value), order_of(value)))
    if isinstance(value, dict) and isinstance(value.get(EXPERTS), list):
        return older_of(path, value)
    if isinstance(value, dict) and isinstance(value.get("batch_data_list"), list):
        routing = f"routing of {len(value['batch_data_list'])} batches, no lists of unsafe experts"
        return Older(path, None, (), value, (routing,))
    raise UserError(
        f"{path} is no older analysis: expected a dict with {EXPERTS} or batch_data_list, or a table with columns "
        "layer, expert, risk_diff"
    )


def older_of(path: Path, value: dict[str, Any]) -> Older:
    """What is in a dict with `batch_unsafe_experts`.

    Raises:
        UserError: its lists or tables are of an unknown form.
    """
    batches = tuple(_pairs(path, pairs) for pairs in value[EXPERTS])
    table = value.get("aggregated_risk_diff")
    findings = [f"{len(batches)} batches with {sum(map(len, batches))} unsafe experts in all"]
    if _is_table(table):
        _check_table(path, table)
        findings += [f"aggregated_risk_diff: {sign_of(table)}", f"aggregated_risk_diff: {order_of(table)}"]
    else:
        table = None
    tables = value.get("batch_risk_diffs")
    for each in tables if isinstance(tables, list) else ():
        if _is_table(each):
            _check_table(path, each)
    findings += _lists(batches, tables)
    masks = value.get("batch_expert_masks")
    if masks is not None:
        findings.append(_masks_against(batches, masks))
    return Older(path, table, batches, value, tuple(findings))


def _is_table(value: Any) -> bool:
    return isinstance(value, pd.DataFrame) and set(COLUMNS) <= set(value.columns)


def _check_table(path: Path, table: pd.DataFrame) -> None:
    """Refuse a table with two columns of one name, or with anything but finite numbers in those that are read."""
    twice = table.columns[table.columns.duplicated()].tolist()
    if twice:
        raise UserError(f"{path}: a table has the column {shown(twice[0])} twice")
    arms = {name for names in ARMS for arm in names for name in (arm, f"{arm}_n")}
    for name in (*COLUMNS, *sorted(arms & set(table.columns))):
        values = table[name].to_numpy()
        kinds = "iu" if name in ("layer", "expert") else "iuf"
        if values.dtype.kind not in kinds:
            raise UserError(
                f"{path}: the column {name} is {values.dtype}, expected {'whole ' * (kinds == 'iu')}numbers"
            )
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise UserError(f"{path}: the column {name} is {values[wrong[0]]} in line {wrong[0]}")
        if kinds == "iu" and len(values) and values.min() < 0:
            raise UserError(f"{path}: the column {name} is {values.min()} in line {values.argmin()}")


def sign_of(table: pd.DataFrame) -> str:
    """Which difference risk_diff is, found by computing those that were in use."""
    risk_diff = table["risk_diff"].to_numpy(np.float64)
    for left, right, one, other in _differences(table):
        if np.allclose(risk_diff, one - other, rtol=0, atol=TOLERANCE):
            either = " (or its reverse: all are 0)" if not risk_diff.any() else ""
            return f"risk_diff = {left} - {right}{either}"
        if np.allclose(risk_diff, other - one, rtol=0, atol=TOLERANCE):
            return f"risk_diff = {right} - {left}"
    return "risk_diff is none of the known differences of the table's columns"


def _differences(table: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    for first, not_first, second, not_second in ARMS:
        if {f"{first}_n", f"{second}_n"} <= set(table.columns):
            one, other = _columns(table, f"{first}_n", f"{second}_n")
            yield f"{first}_n", f"{second}_n", one, other
        if {first, not_first, second, not_second} <= set(table.columns):
            a1, d1, a2, d2 = _columns(table, first, not_first, second, not_second)
            share_1, share_2 = f"{first}/({first}+{not_first})", f"{second}/({second}+{not_second})"
            yield share_1, share_2, _ratio(a1, a1 + d1), _ratio(a2, a2 + d2)
            yield f"{first}/{not_first}", f"{second}/{not_second}", _ratio(a1, d1), _ratio(a2, d2)


def order_of(table: pd.DataFrame) -> str:
    """In which order the table's lines are."""
    risk_diff = table["risk_diff"].to_numpy(np.float64)
    places = list(zip(table["layer"].tolist(), table["expert"].tolist(), strict=True))
    if (np.diff(risk_diff) <= 0).all():
        return "sorted by risk_diff, highest first"
    if (np.diff(risk_diff) >= 0).all():
        return "sorted by risk_diff, lowest first"
    if (np.diff(np.abs(risk_diff)) <= 0).all():
        return "sorted by the size of risk_diff, whatever its sign"
    if places == sorted(places):
        return "not sorted by risk_diff: in the order of layers and experts"
    return "in no order"


def _lists(batches: Sequence[tuple[tuple[int, int], ...]], tables: Any) -> list[str]:
    longest = max(map(len, batches), default=0)
    by_place = sum(list(pairs) == sorted(pairs) for pairs in batches if len(pairs) > 1)
    several = sum(len(pairs) > 1 for pairs in batches)
    at_most = sum(len(pairs) == longest for pairs in batches)
    findings = [f"batches' lists: the longest has {longest} experts, and {at_most} have as many"]
    if isinstance(tables, list) and len(tables) == len(batches):
        by_risk = sum(_is_head(pairs, table) for pairs, table in zip(batches, tables, strict=True))
        findings.append(f"batches' lists: {by_risk} of {len(batches)} are the experts of highest risk_diff")
    if several and by_place == several:
        findings.append(
            "batches' lists: not sorted by risk_diff, but in the order of layers and experts; if they were cut to a "
            "length, the first layers won"
        )
    elif by_place:
        findings.append(f"batches' lists: {by_place} of {several} are in the order of layers and experts")
    else:
        findings.append("batches' lists: not in the order of layers and experts, so they were sorted by something")
    return findings


def _is_head(pairs: tuple[tuple[int, int], ...], table: Any) -> bool:
    if not _is_table(table):
        return False
    ordered = table.sort_values("risk_diff", ascending=False, kind="stable")
    chosen = set(pairs)
    inside = [place in chosen for place in zip(ordered["layer"], ordered["expert"], strict=True)]
    risk_diff = ordered["risk_diff"].to_numpy()
    # As sets, and equal risks in any order: nothing outside is above the lowest inside.
    lowest = min((risk for risk, is_inside in zip(risk_diff, inside, strict=True) if is_inside), default=np.inf)
    return all(risk <= lowest for risk, is_inside in zip(risk_diff, inside, strict=True) if not is_inside)


def _masks_against(batches: Sequence[tuple[tuple[int, int], ...]], masks: Any) -> str:
    if not isinstance(masks, list) or len(masks) != len(batches):
        return "batch_expert_masks: not one mask a batch"
    differing = sum(
        not isinstance(mask, np.ndarray)
        or mask.dtype.kind not in "biuf"
        or sorted(map(tuple, np.argwhere(mask).tolist())) != sorted(pairs)
        for pairs, mask in zip(batches, masks, strict=True)
    )
    return f"batch_expert_masks: {len(masks) - differing} of {len(masks)} are those of the lists"


def _pairs(path: Path, pairs: Any) -> tuple[tuple[int, int], ...]:
    if isinstance(pairs, list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        flat = [part for pair in pairs for part in pair]
        if all(type(part) is int and 0 <= part < 1 << 31 for part in flat):
            return tuple((layer, expert) for layer, expert in pairs)
    raise UserError(f"{path}: {EXPERTS} is not lists of (layer, expert) as whole numbers from 0")


def _columns(table: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [table[name].to_numpy(np.float64) for name in names]


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.divide(one, other, out=np.zeros_like(one), where=other != 0)
