"""Mask stores that are damaged, foreign, or forged with valid digests, through every command that reads one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dist_moe.cli.main import main
from dist_moe.store import Counts, MaskStore
from dist_moe.store.layout import encode_texts
from tests.bad_inputs.forge import cut, directory, flip, rearray, refile, reroot, retext, write
from tests.bad_inputs.harness import Case, check, ids, nothing

STORE = "run/masks.zarr"
ROOT = f"{STORE}/zarr.json"
COUNTS = "run/counts.zarr"
COMMANDS = {
    "inspect": f"inspect {STORE}",
    "train": "train --config run.yaml",
    "verify": f"verify model model --masks {STORE}",
    "copy": f"store copy {STORE} new.zarr",
    "diff": f"store diff {STORE} {STORE}",
}
SELECT = "select run --out new"


def values(name, store=STORE):
    """An array as it is stored: [B, ...]."""
    rows = (Counts if store == COUNTS else MaskStore).open(store).files.array(name)
    return rows[:]


def forge(name, change):
    def apply():
        data = values(name)
        rearray(STORE, name, np.ascontiguousarray(change(data)))

    return apply


def of_counts(harm):
    """What is done to the counts, and the masks then say that they were selected from such."""

    def apply():
        harm()
        digest = json.loads(Path(COUNTS, "zarr.json").read_text())["attributes"]["complete"]["digest"]
        reroot(STORE, lambda attributes: attributes.update(counts=digest))

    return apply


def recount(name, change):
    return of_counts(lambda: rearray(COUNTS, name, np.ascontiguousarray(change(values(name, COUNTS)))))


def root_of_counts(change):
    return of_counts(lambda: reroot(COUNTS, change))


def one(value, *place):
    def apply(data):
        data[place] = value
        return data

    return apply


def texts(name, *entries):
    return lambda: rearray(STORE, name, encode_texts(entries))


def root(change):
    return lambda: reroot(STORE, change)


def lose_array(attributes):
    del attributes["complete"]["arrays"]["batch_signs"]


FILES = {
    "no zarr.json": (lambda: Path(ROOT).unlink(), ("is not a mask store",)),
    "zarr.json is empty": (lambda: write(ROOT, b""), ("zarr.json is not JSON",)),
    "zarr.json cut short": (lambda: cut(ROOT, 100), ("zarr.json is not JSON",)),
    "zarr.json a directory": (lambda: directory(ROOT), ("is not a mask store",)),
    "zarr.json not UTF-8": (lambda: write(ROOT, b"\xff\xfe{}"), ("zarr.json is not JSON",)),
    "zarr.json nested too deep": (lambda: write(ROOT, "[" * 100_000), ("zarr.json is not JSON",)),
    "zarr.json a list": (lambda: write(ROOT, "[]"), ("does not say format",)),
    "zarr.json of another format": (root(lambda a: a.update(format="x")), ("does not say format",)),
    "an older version": (root(lambda a: a.update(format_version=2)), ("has format version 2, which an older",)),
    "a newer version": (root(lambda a: a.update(format_version=4)), ("has format version 4",)),
    "changed and not sealed": (
        lambda: write(ROOT, Path(ROOT).read_text().replace('"counted_tokens": "', '"counted_tokens": "x')),
        ("zarr.json has changed since it was written",),
    ),
    "no such store": (lambda: shutil.rmtree(STORE), ("no mask store at",)),
    "a file in the store's place": (lambda: (shutil.rmtree(STORE), write(STORE, b"x")), ("is not a mask store",)),
}
CASES = [Case(f"{name}, inspect", harm, COMMANDS["inspect"], says) for name, (harm, says) in FILES.items()]
CASES += [
    Case(f"{name}, {command}", FILES[name][0], argv, FILES[name][1], ("run/.lock",))
    for name in ("zarr.json cut short", "changed and not sealed", "zarr.json a list")
    for command, argv in COMMANDS.items()
    if command != "inspect"
]
FORGED = {
    "no rule of that name": (root(lambda a: a["selection_rule"].update(name="best")), ("selection rule",)),
    "a rule with a key more": (root(lambda a: a["selection_rule"].update(x=1)), ("selection rule",)),
    "a threshold of NaN": (root(lambda a: a["selection_rule"].update(threshold=float("nan"))), ("threshold is nan",)),
    "a negative top_k": (root(lambda a: a["selection_rule"].update(top_k=-3)), ("top_k is -3",)),
    "a top_k of true": (root(lambda a: a["selection_rule"].update(top_k=True)), ("top_k is True",)),
    "provenance without data_hash": (
        root(lambda a: a["provenance"].pop("data_hash")),
        ("provenance has no data_hash",),
    ),
    "provenance without tokens_hash": (root(lambda a: a["provenance"].pop("tokens_hash")), ("has no tokens_hash",)),
    "provenance is text": (root(lambda a: a.update(provenance="x")), ("provenance is 'x'",)),
    "no layer names": (root(lambda a: a.update(layer_names=[])), ("layer_names",)),
    "layer names are numbers": (root(lambda a: a.update(layer_names=[1, 2, 3])), ("layer_names.0",)),
    "a layer name less": (root(lambda a: a["layer_names"].pop()), ("expected axis 1 to be 2",)),
    "experts_per_token is text": (root(lambda a: a.update(experts_per_token="2")), ("experts_per_token",)),
    "more experts a token than experts": (root(lambda a: a.update(experts_per_token=9)), ("9 experts a token, of 8",)),
    "other experts": (root(lambda a: a.update(num_experts=17)), ("array ",)),
    "an array less": (root(lose_array), ("there is no array 'batch_signs'",)),
    "an array more": (
        root(lambda a: a["complete"]["arrays"].update({"../x": "0" * 64})),
        ("there is an unknown array '../x'",),
    ),
    "a statistic of a bad name": (root(lambda a: a["statistics"].append("../x")), ("'../x' is no name",)),
    "masks of another shape": (forge("masks", lambda m: m[:, :2]), ("array masks is uint8", "axis 1 to be 3")),
    "masks of another type": (forge("masks", lambda m: m.astype(np.int8)), ("array masks is int8", "expected uint8")),
    "masks without an axis": (
        forge("masks", lambda m: m[:, 0]),
        ("expected uint8, 3 axes",),
    ),
    "a batch of masks less": (forge("masks", lambda m: m[:1]), ("array ",)),
    "a category less": (texts("batch_categories", "hacking"), ("batch_categories has 1 entries: expected 2",)),
    "a batch id more": (texts("batch_ids", "a", "b", "c"), ("entries",)),
    "ids that are numbers": (lambda: retext(STORE, "batch_ids", "[1, 2]"), ("batch_ids is not a JSON list of text",)),
    "ids that are no JSON": (lambda: retext(STORE, "batch_ids", "x"), ("batch_ids is not a JSON list of text",)),
    "hashes of another length": (forge("batch_mask_hashes", lambda h: h[:, :31]), ("hashes", "axis 1 to be 32")),
    "a statistic of another shape": (forge("statistic_q_value", lambda q: q[:, :, :7]), ("axis 2 to be 8",)),
    "an array's metadata no JSON": (lambda: refile(STORE, "masks", {"zarr.json": b"x"}), ("zarr.json is no array's",)),
    "an array's metadata a group's": (
        lambda: refile(STORE, "masks", {"zarr.json": b'{"zarr_format": 3, "node_type": "group"}'}),
        ("zarr.json is no array's",),
    ),
    "a file that is no array's": (
        lambda: refile(STORE, "batch_ids", {"c/0": b"no zstd"}),
        ("array batch_ids has a file that cannot be decoded",),
    ),
    "a revision without the one before": (
        root(lambda a: a.update(revision=1)),
        ("it is revision 1, and the one before",),
    ),
    "a first revision with one before": (root(lambda a: a.update(previous="a" * 64)), ("it is revision 0",)),
    "a revision below 0": (root(lambda a: a.update(revision=-1)), ("revision is -1",)),
    "counts that are no digest": (root(lambda a: a.update(counts=3)), ("counts",)),
    "signs of other masks": (forge("batch_signs", lambda s: s + 1), ("experts in masks, and",)),
    "a seed that is text": (root(lambda a: a["provenance"].update(seed="x")), ("seed is 'x'",)),
    "signs of another type": (forge("batch_signs", lambda s: s.astype(np.int64)), ("batch_signs is int64",)),
    "prompts below 0": (forge("batch_prompts", lambda p: -p), ("batch_prompts is below 0 for batch 0",)),
}
FORGED_COUNTS = {
    "counts of another type": (
        recount("prompt_counts", lambda c: c.astype(np.float64)),
        ("prompt_counts is float64",),
    ),
    "counts of fewer prompts": (recount("prompt_counts", lambda c: c[:, :-1]), ("15",)),
    "labels of another length": (recount("prompt_unsafe", lambda p: p[:-1]), ("prompt_unsafe", "axis 0 to be 32")),
    "labels that are numbers": (
        recount("prompt_unsafe", lambda p: p.astype(np.uint8)),
        ("prompt_unsafe is uint8",),
    ),
    "batches not in order": (
        recount("prompt_batch", lambda p: p[::-1]),
        ("prompt_batch is not of batches 0 to 1",),
    ),
    "a batch out of range": (recount("prompt_batch", one(7, -1)), ("prompt_batch is not of batches 0 to 1",)),
    "a negative batch": (recount("prompt_batch", one(-1, 0)), ("prompt_batch is not of batches 0 to 1",)),
    "a prompt id less": (
        of_counts(lambda: rearray(COUNTS, "prompt_ids", encode_texts(["a"]))),
        ("prompt_ids has 1 entries: expected 32",),
    ),
    "ids that are an object": (
        of_counts(lambda: retext(COUNTS, "prompt_ids", "{}")),
        ("prompt_ids is not a JSON list of text",),
    ),
    "gates of another type": (
        recount("prompt_gates", lambda g: g.astype(np.float64)),
        ("prompt_gates is float64",),
    ),
    "an older version of counts": (root_of_counts(lambda a: a.update(format_version=0)), ("has format version 0",)),
    "counts of another format": (root_of_counts(lambda a: a.update(format="x")), ("is not a counts store",)),
    "a table of a bad name": (root_of_counts(lambda a: a["tables"].append("../x")), ("'../x' is no name",)),
}
CASES += [Case(f"forged: {name}, inspect", harm, COMMANDS["inspect"], says) for name, (harm, says) in FORGED.items()]
CASES += [
    Case(f"forged: {name}, {command}", harm, argv, says)
    for name, (harm, says) in FORGED_COUNTS.items()
    for command, argv in {"inspect": f"inspect {STORE} aggregated", "select": SELECT}.items()
]
SOME = (
    "no rule of that name",
    "masks of another shape",
    "a category less",
    "signs of another type",
)
CASES += [
    Case(f"forged: {name}, {command}", FORGED[name][0], argv, FORGED[name][1], ("run/.lock",))
    for name in SOME
    for command, argv in COMMANDS.items()
    if command != "inspect"
]
VALUES = {
    "a negative count": (
        recount("prompt_counts", one(-1, 1, 3, 0, 5)),
        f"inspect {STORE} diff top_k=1",
        ("prompt_counts is -1 of", "L00_E05, for batch 1, its prompt 3"),
    ),
    "more counts than tokens": (
        recount("prompt_counts", one(10_000, 0, 2, 1, 1)),
        f"inspect {STORE} aggregated",
        ("prompt_counts is 10000 of", "batch 0, its prompt 2"),
    ),
    "more counts than tokens times k": (
        recount(
            "prompt_counts",
            lambda c: np.zeros_like(c) + values("prompt_tokens", COUNTS).astype(np.int32)[:, :, None, None],
        ),
        f"inspect {STORE} diff top_k=1",
        ("prompt_counts is", "in layer 0, at 2 experts a token", "batch 0, its prompt 0"),
    ),
    "negative tokens": (
        recount("prompt_tokens", one(-5, 1, 0)),
        f"inspect {STORE} diff top_k=1",
        ("prompt_tokens is -5, for batch 1, its prompt 0",),
    ),
    "a gate of NaN": (
        recount("prompt_gates", one(np.nan, 1, 2, 0, 1)),
        f"inspect {STORE} diff name=esft_gate",
        ("prompt_gates is nan, L00_E01, for batch 1, its prompt 2",),
    ),
    "a negative gate": (
        recount("prompt_gates", one(-1, 0, 0, 0, 1)),
        f"inspect {STORE} diff name=esft_gate",
        ("prompt_gates is -1.0, L00_E01, for batch 0",),
    ),
}
CASES += [Case(f"forged: {name}", harm, argv, says) for name, (harm, argv, says) in VALUES.items()]
CASES += [
    Case(f"diff {words}", nothing, f"inspect {STORE} diff {words}", says)
    for words, says in {
        "threshold=nan": ("threshold=nan",),
        "threshold=inf": ("threshold=inf",),
        "threshold=-2": ("threshold=-2",),
        "threshold=x": ("threshold=x",),
        "top_k=-1": ("top_k=-1",),
        "top_k=0": ("top_k=0",),
        "top_k=1.5": ("top_k=1.5",),
        "name=best": ("no rule 'best'",),
        "name=gradient": ("needs gradients",),
        "name=esft_token top_p=2": ("top_p=2",),
        "name=budget_per_layer per_layer=0": ("per_layer=0",),
    }.items()
]


CASES += [
    Case(
        "masks of other counts",
        lambda: reroot(STORE, lambda a: a.update(counts="0" * 64)),
        f"inspect {STORE} batch 0",
        ("was selected from other counts than",),
    ),
    Case("no counts, inspect", lambda: shutil.rmtree(COUNTS), f"inspect {STORE} batch 0", ("holds masks only",)),
    Case("no counts, select", lambda: shutil.rmtree(COUNTS), SELECT, ("no counts store at run/counts.zarr",)),
    Case(
        "masks in the place of counts",
        lambda: (shutil.rmtree(COUNTS), shutil.copytree(STORE, COUNTS)),
        SELECT,
        ("is not a counts store",),
    ),
    Case("select over masks", nothing, "select run", ("run/masks.zarr exists",)),
    Case("select over counts", nothing, "select run --out counts", ("--out is 'counts'",)),
    Case("select out of the run", nothing, "select run --out ../x", ("--out is '../x'",)),
    Case("select as a revision", nothing, "select run --out masks.r1", ("--out is 'masks.r1'",)),
    Case("select by no rule", nothing, "select run --out x --rule best", ("no rule 'best'",)),
    Case("select by gradients", nothing, "select run --out x --rule gradient", ("needs gradients", "count with")),
    Case("select a wrong parameter", nothing, "select run --out x thresh=1", ("no parameter 'thresh'",)),
    Case("select a wrong value", nothing, "select run --out x threshold=nan", ("threshold=nan",)),
    Case("select a parameter twice", nothing, "select run --out x top_k=1 top_k=2", ("each name once",)),
    Case("select nothing", nothing, "select run --out x threshold=0.99", ("no expert in any batch",)),
    Case("select without a run", nothing, "select nowhere", ("no counts store at nowhere/counts.zarr",)),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_artefacts_of_stores(copy, capsys, case):
    check(case, capsys)


@pytest.mark.parametrize("name", ["no rule of that name", "masks of another shape", "signs of another type"])
def test_a_forged_store_is_no_whole_one_for_check(copy, capsys, name):
    FORGED[name][0]()
    assert main(["store", "check", STORE]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "is damaged: " in line
    assert FORGED[name][1][0] in line


ARRAYS = ("masks", "batch_signs", "prompt_counts", "batch_ids", "prompt_batch", "statistic_q_value")


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("harm", ["missing", "cut", "empty", "a directory", "one bit"])
def test_each_artefact_file_of_a_store(copy, capsys, array, harm):
    """A file of an array: `store check` finds it and names it, and whoever needs it says so in one line."""
    store = COUNTS if array.startswith("prompt") else STORE
    file = str(next(path for path in sorted(Path(store, array, "c").rglob("*")) if path.is_file()))
    do = {"missing": lambda f: Path(f).unlink(), "cut": cut, "empty": lambda f: write(f, b"")}
    {**do, "a directory": directory, "one bit": flip}[harm](file)
    assert main(["store", "check", store]) == 1
    assert f"array {array}: " in capsys.readouterr().out
    assert main(["store", "copy", store, "new.zarr"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"array {array} has changed since it was written" in line
    assert not Path("new.zarr").exists()


def test_the_attributes_that_are_read_are_all_those_of_a_store(copy):
    attributes = json.loads(Path(ROOT).read_text())["attributes"]
    store = MaskStore.open_whole(STORE)
    assert store.selection_rule == attributes["selection_rule"]
    assert list(store.layer_names) == attributes["layer_names"]
    assert list(store.statistic_names) == attributes["statistics"]
    assert (store.counts_digest, store.revision, store.previous) == (attributes["counts"], 0, None)
    assert store.provenance == attributes["provenance"]
