"""`dist-moe count --routes`: the counts of routes that a server has recorded are those of our own passes, bit for bit.

The server is plain transformers with hooks of its own (tests/recorded.py), which answers in all known forms.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dist_moe.cli.main import main
from dist_moe.store import Counts, MaskStore
from dist_moe.store.origin import NO_WEIGHTS
from examples import ask_server
from tests.cli.conftest import new_run
from tests.recorded import FORMS, as_int32, as_npy, served, write_lines, write_npz

ENDS = (1,)


def answers(run, tmp_path, *settings):
    """Ask for what the command says; id -> what a server has found."""
    requests = tmp_path / "requests.jsonl"
    assert main(["count", "--config", str(run.config), "--requests", str(requests), *settings]) == 0
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    return {line["id"]: served(model, line["prompt_token_ids"], line["max_tokens"], ENDS) for line in lines}


def write_files(tmp_path, found, dense=0):
    """All forms, over two files of lines and one of arrays."""
    names = list(found)
    lines = [FORMS[i % len(FORMS)](name, found[name], dense) for i, name in enumerate(names[:-4])]
    files = [write_lines(tmp_path / f"part-{i}.jsonl", lines[i::2]) for i in range(2)]
    return [*files, write_npz(tmp_path / "rest.npz", {name: found[name] for name in names[-4:]})]


def count(run, place, *words):
    assert main(["count", "--config", str(run.config), "--run-dir", str(place), *map(str, words)]) == 0
    return Counts.open_whole(place / "counts.zarr")


def require_same(found, expected):
    """But for gates, and for where the counts come from."""
    arrays = set(expected.files.array_digests) - {"prompt_gates"}
    assert set(found.files.array_digests) == arrays
    assert {name: found.files.array_digests[name] for name in arrays} == {
        name: expected.files.array_digests[name] for name in arrays
    }
    one, other = (
        {name: value for name, value in store.attributes.items() if name not in ("provenance", "tables")}
        for store in (found, expected)
    )
    assert one == other


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        pytest.param("qwen3_moe", "all", marks=pytest.mark.long),
        ("qwen3_moe", "generated"),
        ("deepseek_v3", "content"),
        pytest.param("deepseek_v3", "completion", marks=pytest.mark.long),
    ],
)
def test_routes_give_the_counts_of_our_own_passes(tmp_path, family, tokens):
    run = new_run(tmp_path, family)
    settings = ["--analysis.tokens", tokens, "--analysis.max_new_tokens", "5"]
    expected = count(run, tmp_path / "ours", *settings)
    files = write_files(tmp_path, answers(run, tmp_path, *settings), dense=family == "deepseek_v3")
    for weights in run.model.glob("*.safetensors*"):
        weights.unlink()
    settings_of = json.loads((run.model / "config.json").read_text())
    settings_of["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}  # as DeepSeek-V3 has
    (run.model / "config.json").write_text(json.dumps(settings_of))
    found = count(run, tmp_path / "routed", "--routes", *files, *settings)
    assert expected.prompt_counts[:].any()
    require_same(found, expected)
    assert found.table_names == tuple(name for name in expected.table_names if name != "gates")
    assert found.provenance["model_hash"] == NO_WEIGHTS
    assert [fact["name"] for fact in found.provenance["routes"]] == [file.name for file in files]


class Server(BaseHTTPRequestHandler):
    """Answers as the server whose place is asked, by plain transformers; it is started with a model."""

    model: ClassVar[PreTrainedModel]
    asked: ClassVar[list[int]] = []

    def do_POST(self):
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/completions":
            assert given["model"] == "tiny"
            found = served(self.model, given["prompt"], given["max_tokens"], ENDS)
            answer = as_npy("", found)["response"]["body"]
        else:
            assert (self.path, given["return_routed_experts"]) == ("/generate", True)
            found = served(self.model, given["input_ids"], given["sampling_params"]["max_new_tokens"], ENDS)
            answer = as_int32("cmpl-0", found)
        self.asked.append(len(found["prompt"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *words):
        """Nothing is printed."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A run, and the files of routes for which examples/ask_server.py has asked two servers, with an interruption."""
    root = tmp_path_factory.mktemp("asked")
    run, files = new_run(root), [root / "vllm.jsonl", root / "sglang.jsonl"]
    requests = root / "requests.jsonl"
    assert main(["count", "--config", str(run.config), "--requests", str(requests)]) == 0
    lines = requests.read_text().splitlines(keepends=True)
    Server.model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32).eval()
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = ["--url", f"http://127.0.0.1:{server.server_port}", "--at-once", "1"]
        for some, file in ((lines[:5], files[0]), (lines[:20], files[0]), (lines[20:], files[1])):
            (root / "some.jsonl").write_text("".join(some))
            kind = ["--server", "vllm", "--model", "tiny"] if file == files[0] else ["--server", "sglang"]
            ask_server.main([str(root / "some.jsonl"), str(file), *kind, *url])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(Server.asked) == len(lines), "a prompt was asked for twice, or not at all"
    return run, files


def test_masks_of_routes_are_those_of_the_model_and_train(asked, tmp_path, capsys):
    """With the weights in place, the store names the model, and masks from it train."""
    run, files = asked
    count(run, tmp_path / "ours")
    count(run, tmp_path / "routed", "--routes", *files)
    stores = []
    for place in (tmp_path / "ours", tmp_path / "routed"):
        assert main(["select", str(place), "threshold=0.01"]) == 0
        stores.append(MaskStore.open_whole(place / "masks.zarr"))
    ours, routed = stores
    assert (ours.masks[:] == routed.masks[:]).all()
    assert ours.masks[:].any()
    assert routed.provenance["model_hash"] == ours.provenance["model_hash"]
    arguments = ["--run-dir", str(tmp_path / "run"), "--train.masks", str(routed.path), "--train.epochs", "1"]
    assert main(["train", "--config", str(run.config), *arguments]) == 0


def test_a_rule_that_needs_routing_weights_is_refused_by_name(asked, tmp_path, capsys):
    run, files = asked
    count(run, tmp_path / "routed", "--routes", *files)
    capsys.readouterr()
    assert main(["select", str(tmp_path / "routed"), "--rule", "esft_gate"]) == 2
    assert "gates" in capsys.readouterr().err


def test_requests_are_the_tokens_of_the_rows(asked, tmp_path):
    """By hand: the test's tokenizer gives every word of the template's text one id."""
    run, _ = asked
    requests = tmp_path / "requests.jsonl"
    assert main(["count", "--config", str(run.config), "--requests", str(requests)]) == 0
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    rows = [json.loads(line) for line in run.data.read_text().splitlines()]
    texts = {f"<user> {row['prompt']} <end> <assistant> {row.get('response', 'sorry w1 w2')} <end>" for row in rows}
    names = json.loads((run.model / "tokenizer.json").read_text())["model"]["vocab"]
    words = {number: word for word, number in names.items()}
    assert {" ".join(words[number] for number in line["prompt_token_ids"]) for line in lines} <= texts
    assert len({line["id"] for line in lines}) == len(lines) == 32
    assert {line["max_tokens"] for line in lines} == {1}
