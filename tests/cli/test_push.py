"""`dist-moe export --push`, through the hub's own client, against a local server."""

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore
from dist_moe.workflows import push as workflow
from tests.hub_commands import run
from tests.hub_exports import exports
from tests.hub_loading import digests
from tests.hub_places import ask, kill_when
from tests.hub_pushes import pushes
from tests.hub_repos import Repo, files_of
from tests.hub_server import TOKEN, serving


@pytest.fixture
def hub():
    with serving() as found:
        yield found


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "export"
    (place / "additional_chat_templates").mkdir(parents=True)
    (place / "model.safetensors").write_bytes(np.arange(5000, dtype=np.uint8).tobytes())
    (place / "README.md").write_text("# a card\n")
    (place / "additional_chat_templates/tools.jinja").write_text("{{ messages }}")
    (place / ".kept").write_text("no part of it")
    return place


@pytest.mark.long
def test_an_export_is_pushed_with_its_card_once_it_is_verified(hub, trained, tmp_path):
    export = ["export", str(trained.run_dir), "--out"]
    commands = [
        [*export, "a", "--push", "owner/repaired"],
        [*export, "b", "--push", "owner/repaired"],
        [*export, "b", "--push", "somebody/repaired"],
        [*export, "c", "--push", "repaired"],
        [*export, "c", "--push", "owner/other", "--delta"],
        [*export, "c", "--public"],
    ]
    done, *refused = run(commands, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done["status"] == 0, done
    repo = hub.repos["models/owner/repaired"]
    assert repo.private
    held = repo.commits[repo.branches["main"]]
    assert held.pop(".gitattributes")
    assert held == files_of(tmp_path / "a")
    assert "with repaired experts" in held["README.md"].decode()
    said = f"to {hub.url}/owner/repaired (private)\n  at commit {repo.branches['main']}: each file there has the digest"
    assert f"Pushed {len(held)} files, " in done["out"]
    assert said in done["out"]
    assert done["out"].index("Verified: only the run's experts") < done["out"].index("Pushed ")
    lines = (
        f"--push: {hub.url}/owner/repaired has files already, and a push overwrites nothing: choose another name",
        "--push: the token is of owner and org, none of which is the owner of somebody/repaired",
        "--push: expected OWNER/NAME, got 'repaired'",
        "--push is for a checkpoint: leave --delta out",
        "--public is for a push: give --push OWNER/NAME",
    )
    for line, answer in zip(lines, refused, strict=True):
        assert answer["status"] == 2
        assert f"dist-moe: error: {line}" in answer["err"]
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "c").exists()


@pytest.mark.long
def test_what_python_has_pushed_loads_elsewhere_in_plain_transformers(hub, trained, tmp_path):
    """Weights beside and small files inside a commit, read again through another cache, by a token that may read it."""
    to = {"push": "owner/repaired"}
    asked = [(str(trained.run_dir), "a", to), (str(trained.run_dir), "b", to)]
    here = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    (num_experts, pushed), refused = exports(asked, tmp_path, **here)
    assert num_experts == int(MaskStore.open(trained.masks).union().sum())
    assert pushed["url"] == f"{hub.url}/owner/repaired"
    assert pushed["is_private"]
    assert refused.startswith(f"--push: {hub.url}/owner/repaired has files already")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (found,) = ask("tests.hub_loading", ["owner/repaired"], elsewhere, **here)
    assert found == digests(str(tmp_path / "a"))
    assert found != digests(str(trained.model))
    assert hub.downloads("owner/repaired")
    public = [(str(trained.run_dir), "c", {"push": "owner/public", "public": True, "alpha": 0.5})]
    ((_, pushed),) = exports(public, tmp_path, **here)
    assert (pushed["is_private"], hub.repos["models/owner/public"].private) == (False, False)


def test_nothing_is_pushed_that_does_not_verify(trained, tmp_path, monkeypatch):
    def damaged(run_dir, out, **how):
        written(run_dir, out, **how)
        shard = next(out.glob("*.safetensors"))
        data = shard.read_bytes()
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    written, pushed = workflow.export, []
    monkeypatch.setattr(workflow, "export", damaged)
    monkeypatch.setattr(workflow, "require_pushable", lambda *_, **__: None)
    monkeypatch.setattr(workflow, "push", lambda *_, **__: pushed.append(True))
    with pytest.raises(UserError, match=r"outside of what .* was to train, so nothing is pushed: "):
        workflow.export_and_push(trained.run_dir, tmp_path / "out", "owner/repaired")
    assert not pushed


def test_a_push_that_is_cut_off_commits_nothing_and_can_be_repeated(hub, folder, tmp_path):
    to, environment = [(str(folder), "owner/new", True)], {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    hub.fails["/api/models/owner/new/commit/"] = 418
    (line,) = pushes(to, tmp_path, **environment)
    assert line == f"--push: {hub.url} answers with status 418: try again later"
    assert list(hub.repos["models/owner/new"].commits.values()) == [{".gitattributes": b"*.safetensors filter=lfs\n"}]
    hub.fails.clear()
    public = [(str(folder), "owner/new", False)]
    of_org = [(str(folder), "org/new", False)]
    other, pushed, again, refused = pushes([*public, *to, *to, *of_org], tmp_path, **environment)
    assert refused.startswith(f"--push: {hub.url} does not let this token write to org/new")
    assert other == f"--push: {hub.url}/owner/new is private, and the push is to be public: choose another name"
    assert (pushed["num_files"], pushed["num_bytes"], pushed["is_private"]) == (3, 5000 + 9 + 14, True)
    assert sorted(hub.repos["models/owner/new"].commits[pushed["commit"]]) == [
        ".gitattributes",
        "README.md",
        "additional_chat_templates/tools.jinja",
        "model.safetensors",
    ]
    assert "has files already" in again


@pytest.mark.long
def test_a_push_that_is_killed_in_an_upload_leaves_no_commit_and_can_be_repeated(hub, folder, tmp_path):
    to, environment = [(str(folder), "owner/new", True)], {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    hub.stalls = {"PUT /stored/"}
    kill_when(
        "tests.hub_pushes", to, tmp_path, lambda: any(each.startswith("PUT") for each in hub.asked), **environment
    )
    hub.stalls.clear()
    assert list(hub.repos["models/owner/new"].commits.values()) == [{".gitattributes": b"*.safetensors filter=lfs\n"}]
    assert hub.stored == {}
    (pushed,) = pushes(to, tmp_path, **environment)
    held = hub.repos["models/owner/new"].commits[pushed["commit"]]
    assert held["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_what_the_hub_holds_is_compared(hub, folder, tmp_path):
    hub.alters = True
    (line,) = pushes([(str(folder), "owner/new", False)], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert f"does not hold model.safetensors as it is in {folder}: delete that repository, and push again" in line
    assert not hub.repos["models/owner/new"].private


@pytest.mark.long
def test_without_a_token_that_may_write_nothing_is_asked_for(hub, folder, tmp_path):
    hub.repos["models/owner/empty"] = Repo()
    to = [(str(folder), "owner/new", True)]
    cases = {
        "": f"--push: there is no token for {hub.url}: log in with `hf auth login`, or set HF_TOKEN to one that may",
        "hf_wrong": f"--push: {hub.url} does not know the token: log in with `hf auth login`, or set HF_TOKEN",
    }
    for token, line in cases.items():
        assert pushes(to, tmp_path, HF_ENDPOINT=hub.url, **({"HF_TOKEN": token} if token else {}))[0].startswith(line)
    offline = pushes(to, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert offline == [f"--push: HF_HUB_OFFLINE forbids to ask {hub.url}: unset it"]
    gone = pushes(to, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert gone == [
        "--push: the connection to http://127.0.0.1:9 was lost (ConnectError); nothing was committed: push again"
    ]
    assert "models/owner/new" not in hub.repos
