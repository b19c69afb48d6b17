"""Files of routes that are damaged, hostile, or of another model, other data or other tokens."""

import contextlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dist_moe.cli.main import main
from tests.bad_inputs.forge import cut, write
from tests.bad_inputs.harness import Case, check, ids, nothing
from tests.recorded import as_lists, as_npy, write_lines, write_npz
from tests.tiny import E, K, L

COUNT = "count --config run.yaml --run-dir new --routes routes.jsonl"
ARRAYS = "count --config run.yaml --run-dir new --routes routes.npz"


def answers(form=as_lists):
    """Made-up answers to the requests of the run: any routes that a router could have given."""
    generator, lines = np.random.default_rng(0), []
    for request in map(json.loads, Path("requests.jsonl").read_text().splitlines()):
        number = len(request["prompt_token_ids"])
        routes = generator.permuted(np.tile(np.arange(E), (number, L, 1)), axis=2)[:, :, :K]
        found = {"prompt": request["prompt_token_ids"], "answer": [9], "routes": routes}
        lines.append((request["id"], found) if form is None else form(request["id"], found))
    return lines


def lines(change, form=as_lists, at=5):
    """The answers, one of them changed."""

    def apply():
        found = answers(form)
        found[at] = change(found[at]) or found[at]
        write_lines(Path("routes.jsonl"), found)

    return apply


def routes(change):
    """The routes of one answer's prompt, changed."""

    def apply(line):
        array = np.array(line["response"]["prompt_routed_experts"])
        line["response"]["prompt_routed_experts"] = change(array).tolist()

    return lines(apply)


def at(token, layer, slot, expert):
    def apply(array):
        array[token, layer, slot] = expert
        return array

    return routes(apply)


def less(array):
    return array[:-2]


def text(old, new):
    """The file of answers with some text replaced."""

    def apply():
        write_lines(Path("routes.jsonl"), answers())
        before = Path("routes.jsonl").read_text()
        assert old in before
        write("routes.jsonl", before.replace(old, new, 1).encode())

    return apply


def arrays(change=None, **more):
    """The answers as an .npz file, one array of one prompt changed."""

    def apply():
        found = dict(answers(None))
        name = min(found)
        if change is not None:
            found[name]["routes"] = change(found[name]["routes"])
        write_npz(Path("routes.npz"), found)

    return apply


def then(*changes):
    def apply():
        for change in changes:
            change()

    return apply


def renamed(name):
    """The first array of the file under another name."""

    def apply():
        with zipfile.ZipFile("routes.npz") as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        with zipfile.ZipFile("routes.npz", "w") as archive:
            for i, (each, data) in enumerate(members.items()):
                archive.writestr(each if i else name, data)

    return apply


def damaged_member():
    """A byte of the middle of the file, in the data of an array, has changed."""
    data = bytearray(Path("routes.npz").read_bytes())
    with zipfile.ZipFile("routes.npz") as archive:
        info = max(archive.infolist(), key=lambda each: each.compress_size)
    place = info.header_offset + info.compress_size // 2 + 60
    data[place] ^= 0xFF
    write("routes.npz", bytes(data))


def drop(line):
    line["id"] = "another"


def same(line):
    line["id"] = json.loads(Path("requests.jsonl").read_text().splitlines()[0])["id"]


def other_ids(line):
    line["response"]["body"]["choices"][0]["prompt_token_ids"][4] += 1


def no_routes(line):
    line["response"].pop("prompt_routed_experts")
    line["response"]["choices"][0].pop("routed_experts")


def other_layers(array):
    return array[:, :-1]


def settings(words):
    return f"{COUNT} {words}"


def put(name, value):
    def apply(part):
        part[name] = value

    return apply


OTHER = "has read other tokens than this run does"
CASES = [
    Case("no such file", nothing, COUNT, ("routes.jsonl", "cannot read the routes", "No such file")),
    Case("a directory", lambda: Path("routes.jsonl").mkdir(), COUNT, ("routes.jsonl", "not a regular file")),
    Case("unknown extension", nothing, f"{COUNT} run.yaml", ("run.yaml: unknown extension", ".jsonl or .npz")),
    Case("a missing prompt", lines(drop), COUNT, ("routes.jsonl: no routes of 1 of 32 prompts, such as",)),
    Case("an empty file", lambda: write("routes.jsonl", b""), COUNT, ("no routes of 32 of 32 prompts",)),
    Case("a prompt twice", lines(same), COUNT, ("routes.jsonl:6: the prompt", "is already in routes.jsonl:1")),
    Case("not JSON", text('"choices"', "choices"), COUNT, ("routes.jsonl:1: not valid JSON",)),
    Case("not UTF-8", lambda: write("routes.jsonl", b'{"id": "\xff"}\n'), COUNT, ("routes.jsonl:1: not UTF-8 text",)),
    Case(
        "no routes", lines(no_routes), COUNT, ("routes.jsonl:6: no `routed_experts`", "--enable-return-routed-experts")
    ),
    Case(
        "an expert too large", at(3, 1, 0, E), COUNT, ("routes.jsonl:6: token 3 has expert 8 in MoE layer 1", "0 to 7")
    ),
    Case(
        "other layers", routes(other_layers), COUNT, ("`prompt_routed_experts` is of the shape", f"{L} layers of {K}")
    ),
    Case("fewer tokens than the prompt", routes(less), COUNT, ("prompt_routed_experts` is of", "and the prompt has")),
    Case("other tokens", lines(other_ids, as_npy), COUNT, ("routes.jsonl:6: token 4 is", OTHER)),
    Case("another number of tokens", nothing, settings("--data.max_length 12"), ("the prompt has", OTHER)),
    Case(
        "a zip file cut short",
        then(arrays(), lambda: cut("routes.npz")),
        ARRAYS,
        ("routes.npz: not a whole .npz file",),
    ),
    Case("a damaged array", then(arrays(), damaged_member), ARRAYS, ("routes.npz", "routed_experts")),
    Case("pickled arrays", arrays(lambda array: array.astype(object)), ARRAYS, ("holds pickled Python objects",)),
    Case(
        "an array of another name", then(arrays(), renamed("routes.npy")), ARRAYS, ("array 'routes' has another name",)
    ),
    Case(
        "a rule that needs routing weights",
        nothing,
        settings("--analysis.rule esft_gate"),
        ("analysis.rule = esft_gate needs the routing weights, which a server's routes do not have",),
    ),
    Case(
        "a rule that needs gradients",
        nothing,
        settings("--analysis.rule gradient"),
        ("analysis.rule = gradient needs the gradients, which a server's routes do not have",),
    ),
    Case("a part", nothing, settings("--analysis.part 1/2"), ("analysis.part splits the work of the model",)),
    Case(
        "routes of prompts for answers",
        nothing,
        settings("--analysis.tokens generated --data.max_length 64"),
        ("the prompt has", OTHER),
    ),
    Case("requests and routes", nothing, f"{COUNT} --requests out.jsonl", ("not allowed with argument",)),
    Case(
        "requests that exist",
        lambda: write("out.jsonl", b""),
        "count --config run.yaml --requests out.jsonl",
        ("out.jsonl exists",),
    ),
]


@pytest.fixture(scope="module")
def requests(finished, tmp_path_factory):
    """What to ask a server for, of the finished run."""
    out = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    with contextlib.chdir(finished):
        assert main(["count", "--config", "run.yaml", "--requests", str(out)]) == 0
    return out


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_it_is_one_line(case, requests, copy, capsys):
    shutil.copy(requests, "requests.jsonl")
    if case.change is nothing and "no such file" not in case.name:
        write_lines(Path("routes.jsonl"), answers())
    check(case, capsys)
