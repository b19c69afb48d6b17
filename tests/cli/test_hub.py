"""Models by the name of a repository, through the hub's own client, against a local server."""

import json

import pytest

from dist_moe.store import Counts, MaskStore
from dist_moe.weights.directory import model_hash
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.hub_commands import run
from tests.hub_places import places
from tests.hub_repos import files_of
from tests.hub_server import TOKEN, serving


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub():
    with serving() as found:
        yield found


def test_every_command_takes_a_repository_and_records_its_commit(hub, source, tmp_path):
    unread = {"pytorch_model.bin": b"p" * 3000, "consolidated.safetensors": b"s" * 3000, "onnx/model.onnx": b"o" * 9}
    commit = hub.put("models/owner/tiny", files_of(source) | unread)
    write_jsonl(tmp_path / "prompts.jsonl", prompt_rows())
    write_config(tmp_path / "run.yaml", "owner/tiny", "prompts.jsonl", "run", "checkpoint: {every: 2}\n")
    commands = [
        ["analyze", "--config", "run.yaml"],
        ["train", "--config", "run.yaml"],
        ["export", "run", "--out", "out"],
        ["verify", "owner/tiny", "out", "--masks", "run/masks.zarr"],
    ]
    answers = run(commands, tmp_path, HF_ENDPOINT=hub.url)
    assert [answer["status"] for answer in answers] == [0] * len(commands), answers
    assert f"Model: owner/tiny at commit {commit}" in answers[0]["out"]
    for store in (Counts.open(tmp_path / "run/counts.zarr"), MaskStore.open(tmp_path / "run/masks.zarr")):
        assert store.provenance["model_hash"] == model_hash(source)
        assert (store.provenance["model_repository"], store.provenance["model_commit"]) == ("owner/tiny", commit)
    checkpoint = next((tmp_path / "run/checkpoints").glob("step-*/index.json"), None)
    facts = json.loads((tmp_path / "run/experts/index.json").read_text())["facts"]
    for recorded in (facts, *([] if checkpoint is None else [json.loads(checkpoint.read_text())["facts"]])):
        assert (recorded["model_repository"], recorded["model_commit"]) == ("owner/tiny", commit)
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nbase_model: owner/tiny\n---\n\n# owner/tiny with repaired experts")
    assert f"| Base model | owner/tiny, commit `{commit}`, hash `{model_hash(source)}` |" in card
    assert hub.downloads("owner/tiny") == sorted(files_of(source))  # each once, and nothing else


@pytest.mark.long
def test_commands_without_a_run_take_a_repository(hub, source, tmp_path):
    hub.put("models/owner/tiny", files_of(source))
    write_jsonl(tmp_path / "prompts.jsonl", prompt_rows())
    write_config(tmp_path / "run.yaml", "owner/tiny", "prompts.jsonl", "run")
    commands = [
        ["plan", "--config", "run.yaml", "--json"],
        ["inspect-model", "owner/tiny@main", "--json"],
        ["verify", "owner/tiny", str(source)],
        ["evaluate", "owner/tiny", "--data", "prompts.jsonl", "--evaluation.max_new_tokens", "2"],
    ]
    answers = run(commands, tmp_path, HF_ENDPOINT=hub.url)
    assert [answer["status"] for answer in answers] == [0] * len(commands), answers
    assert json.loads(answers[1]["out"])["model_type"] == "qwen3_moe"
    evaluation = json.loads((tmp_path / "evaluation-tiny/evaluation.json").read_text())
    assert evaluation["facts"]["model_name"] == "owner/tiny"
    planned = hub.asked.index("GET /api/models/owner/tiny/revision/main", 2)
    assert not [each for each in hub.asked[:planned] if each.endswith("of-00011.safetensors")]  # a plan reads no weight


@pytest.mark.long
def test_the_cache_is_enough_without_a_network(hub, source, tmp_path):
    first = hub.put("models/owner/tiny", files_of(source))
    asked = [("owner/tiny", None)]
    (place,) = places(asked, tmp_path, HF_ENDPOINT=hub.url)
    second = hub.put("models/owner/tiny", files_of(source) | {"generation_config.json": b"{}"})
    hub.asked.clear()
    (pinned,) = places([("owner/tiny", first)], tmp_path, HF_ENDPOINT=hub.url)
    assert pinned == place
    assert not [each for each in hub.asked if "owner" in each]  # of a commit that is there, nobody is asked
    gone = "http://127.0.0.1:9"
    known = [*asked, (f"owner/tiny@{first}", None), (str(tmp_path / "hf/hub/models--owner--tiny"), None)]
    for environment in ({"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": gone}):
        unknown = [("owner/other", None), ("owner/tiny", second), ("owner/tiny@v2", None)]
        *found, other, newer, tagged = places([*known, *unknown], tmp_path, **environment)
        assert found == [place] * 3
        why = (
            "HF_HUB_OFFLINE forbids to ask the hub" if "HF_HUB_OFFLINE" in environment else f"{gone} cannot be reached"
        )
        cache = f"is not in the hub's cache {tmp_path}/hf/hub, and {why}: run `hf download owner/"
        assert f"model.path: there is no directory 'owner/other', and owner/other {cache}other` with" in other
        assert f"owner/tiny@{second} {cache}tiny --revision {second}`" in newer
        assert f"owner/tiny@v2 {cache}tiny --revision v2`" in tagged
    (tmp_path / "hf/hub/models--owner--tiny/snapshots" / first / "tokenizer.json").unlink()
    (part,) = places(asked, tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert "only a part of owner/tiny is in the hub's cache" in part
    elsewhere = f"/elsewhere/hub/models--owner--tiny/snapshots/{first}"  # of a run that came from another machine
    assert places([(elsewhere, first)], tmp_path, HF_ENDPOINT=hub.url) == [place]


def test_what_the_hub_refuses_is_one_line(hub, source, tmp_path):
    files = files_of(source)
    hub.put("models/owner/tiny", files)
    hub.put("models/owner/gated", files, gated=True)
    hub.put("models/owner/private", files, private=True)
    hub.put("models/owner/pickled", {n: d for n, d in files.items() if "safetensors" not in n} | {"a.bin": b"x"})
    hub.put("models/owner/short", {n: d for n, d in files.items() if "00003-of" not in n})
    hub.put("models/owner/failing", files)
    hub.put("models/owner/forbidden", files)
    hub.put("models/owner/cut", files)
    hub.fails |= {"api/models/owner/failing": 418, "GET /owner/forbidden/resolve": 418}
    hub.fails["GET /owner/cut/resolve"] = 0
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/folder").mkdir()
    cases = {
        ("owner/gated", None): f"'owner/gated', and {hub.url}/owner/gated is gated: accept its terms there, and log in",
        ("owner/none", None): "has no model repository owner/none, or does not show it to this token: check the name",
        ("owner/private", None): "has no model repository owner/private, or does not show it to this token",
        ("owner/tiny", "nix"): f"{hub.url}/owner/tiny has no revision 'nix': give a branch, a tag or a commit of it",
        ("owner/tiny@a", "b"): "is owner/tiny@a, and the revision 'b' is given too: leave the revision out of one",
        ("owner/pickled", None): "no *.safetensors file that transformers reads: expected model.safetensors or",
        ("owner/short", None): "names the shard 'model-00003-of-00011.safetensors', which does not exist",
        ("owner/failing", None): f"{hub.url} answers with status 418: run `hf download owner/failing` with a network",
        ("owner/forbidden", None): f"{hub.url}/owner/forbidden answers with status 418: try again later",
        ("owner/cut", None): f"the download of {hub.url}/owner/cut was cut off (RemoteProtocolError): run the same",
        ("owner/folder", "main"): "model.path: owner/folder is a directory here, and has no revision 'main'",
    }
    answers = places(list(cases), tmp_path, HF_ENDPOINT=hub.url)
    for (question, said), answer in zip(cases.items(), answers, strict=True):
        assert answer.startswith("model.path"), (question, answer)
        assert said in answer, question
        assert "\n" not in answer
        assert len(answer) < 650
    with_token = places(
        [("owner/private", None), ("owner/folder", None)], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN
    )
    assert with_token[0].startswith(f"{tmp_path}/hf/hub/models--owner--private/snapshots/")
    assert with_token[1] == "owner/folder"  # a directory comes first
