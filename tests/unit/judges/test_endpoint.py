"""An endpoint that judges, against a local server that fails in every way: what fails is missing, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dist_moe.errors import UserError
from dist_moe.judges.endpoint import Endpoint
from tests.unit.judges.labelled import answered
from tests.unit.judges.server import Served, says, send, serving

BREAD = answered("I can't bake {answer}.<|im_end|>")


def endpoint(served: Served, **settings: object) -> Endpoint:
    quick: dict[str, object] = {"url": served.url, "model": "m", "first_wait": 0.01, "retries": 2, "seconds": 5.0}
    return Endpoint(**{**quick, **settings})  # type: ignore[arg-type]


def verdict(judge: Endpoint) -> tuple[str, str]:
    (found,) = judge.judge([BREAD])
    return found.verdict, found.why


def test_a_request_is_a_chat_completion_with_the_question() -> None:
    with serving(says("REFUSED - it says no.")) as served:
        assert verdict(endpoint(served)) == ("refused", "it says no.")
    (body,) = served.asked
    assert served.paths == ["/v1/chat/completions"]
    assert (body["model"], body["temperature"]) == ("m", 0)
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert "Say it." in message["content"]
    assert "I can't bake {answer}.\n" in message["content"]  # as the user reads it, and its braces as they are
    assert "Authorization" not in served.headers[0]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Complied", "complied"),
        ("**PARTIAL**: half of it", "partial"),
        ("<think>refused? no</think>\n\ncomplied - it is there", "complied"),
        ("The answer is refused", "missing"),
        ("SAFE", "missing"),
        ("refusedly", "missing"),
        ("", "missing"),
        ("<think>refused", "missing"),
    ],
)
def test_a_verdict_is_the_first_word_of_the_reply(reply: str, expected: str) -> None:
    with serving(says(reply)) as served:
        assert verdict(endpoint(served))[0] == expected
        assert len(served.asked) == 1


def fails(status: int, **headers: str):
    return lambda handler, _: send(handler, status, b"{}", **headers)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with serving(fails(status), fails(status), says("refused")) as served:
        assert verdict(endpoint(served))[0] == "refused"
        assert len(served.asked) == 3
    with serving(fails(status)) as served:
        assert verdict(endpoint(served)) == ("missing", f"the endpoint answered HTTP {status}")
        assert len(served.asked) == 3


def test_the_server_says_how_long_to_wait() -> None:
    start = time.monotonic()
    with serving(fails(429, Retry_After="1"), says("refused")) as served:
        assert verdict(endpoint(served))[0] == "refused"
    assert 1 <= time.monotonic() - start < 20


def test_it_does_not_wait_for_ever() -> None:
    start = time.monotonic()
    with serving(fails(429, Retry_After="9999"), says("refused")) as served:
        assert verdict(endpoint(served, seconds=0.5))[0] == "refused"
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    with serving(fails(status), says("refused")) as served:
        assert verdict(endpoint(served)) == ("missing", f"the endpoint answered HTTP {status}")
        assert len(served.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirection_is_followed(status: int) -> None:
    with serving(says("refused")) as other, serving(fails(status, Location=f"{other.url}/chat/completions")) as served:
        assert verdict(endpoint(served)) == ("missing", f"the endpoint answered HTTP {status}")
        assert other.asked == []


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(says("complied")) as proxy, serving(says("refused")) as served:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert verdict(endpoint(served))[0] == "refused"
        assert proxy.asked == []


@pytest.mark.parametrize(
    "body",
    [
        b"not JSON",
        b"",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"text": "refused"}]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_chat_completion_is_missing(body: bytes) -> None:
    with serving(lambda handler, _: send(handler, 200, body)) as served:
        found, why = verdict(endpoint(served))
    assert found == "missing"
    assert why.startswith("the reply is no chat completion")


def test_a_server_that_hangs_is_left() -> None:
    start = time.monotonic()
    with serving(lambda *_: served.released.wait(30) and None) as served:
        found, why = verdict(endpoint(served, seconds=0.3, retries=1))
        assert len(served.asked) == 2
    assert (found, "no reply" in why) == ("missing", True)
    assert time.monotonic() - start < 20


def test_a_server_that_drips_is_left() -> None:
    def drip(handler, _) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not served.released.wait(0.1):
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            pass  # the judge has gone

    start = time.monotonic()
    with serving(drip) as served:
        assert verdict(endpoint(served, seconds=0.5, retries=0)) == ("missing", "no whole reply in 0.5 s")
    assert time.monotonic() - start < 20


def test_a_reply_that_breaks_off_is_missing() -> None:
    def cut(handler, _) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [{"message": {"content": "refused"}}]}')

    with serving(cut) as served:
        assert verdict(endpoint(served, retries=0)) == ("missing", "the reply broke off")


def test_where_nobody_listens_the_rest_is_not_tried() -> None:
    with serving(says("refused")) as served:
        pass
    found = endpoint(served, retries=0).judge([BREAD] * 6)
    assert {each.verdict for each in found} == {"missing"}
    assert [each.why.startswith("not asked") for each in found] == [False] * 3 + [True] * 3


def test_an_answer_that_is_not_there_is_not_asked_about() -> None:
    with serving(says("refused")) as served:
        (found,) = endpoint(served).judge([answered("<think>Well")])
        assert (found.verdict, served.asked) == ("missing", [])


def test_the_budget_counts_every_request() -> None:
    with serving(fails(500), says("refused")) as served:
        found = endpoint(served, budget=3).judge([answered(f"No {i}.") for i in range(4)])
        assert len(served.asked) == 3
    assert [each.verdict for each in found] == ["refused", "refused", "missing", "missing"]
    assert found[2].why == "the budget of 3 requests is spent"


def test_replies_are_kept_by_their_request(tmp_path: Path) -> None:
    with serving(says("refused - kept")) as served:
        judge = endpoint(served, cache=tmp_path / "cache")
        assert verdict(judge) == ("refused", "kept")
        assert verdict(judge) == ("refused", "kept")
        assert len(served.asked) == 1
        (file,) = (tmp_path / "cache").rglob("*.json")
        assert judge.judge([answered("Something else.")])[0].verdict == "refused"
        assert verdict(endpoint(served, cache=tmp_path / "cache", model="other")) == ("refused", "kept")
        assert len(served.asked) == 3
    assert verdict(judge) == ("refused", "kept")  # with no server at all
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "request": {}}))
    with pytest.raises(UserError, match=r"is no reply that was kept for this request; remove it"):
        verdict(judge)


def test_a_reply_without_a_verdict_is_not_kept(tmp_path: Path) -> None:
    with serving(says("well"), says("refused")) as served:
        judge = endpoint(served, cache=tmp_path)
        assert verdict(judge)[0] == "missing"
        assert verdict(judge)[0] == "refused"


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with serving(says("refused")) as served:
        judge = endpoint(served, cache=tmp_path, key_variable="JUDGE_KEY")
        assert verdict(judge)[0] == "refused"
        assert served.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in json.dumps(judge.facts) + judge.in_words
    assert all("s3cret" not in file.read_text() for file in tmp_path.rglob("*.json"))


def test_a_question_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text("Q {request} A {answer}")
    with serving(says("refused")) as served:
        assert verdict(endpoint(served, question=file))[0] == "refused"
    assert served.asked[0]["messages"][0]["content"] == "Q Say it. A I can't bake {answer}."


@pytest.mark.parametrize(
    ("settings", "says_"),
    [
        ({"url": "ftp://host/v1"}, r"judge\.endpoint\.url: expected http://HOST:PORT/v1 or https"),
        ({"url": "localhost:8000"}, r"judge\.endpoint\.url: expected http"),
        ({"url": "http://user:pw@host/v1"}, r"has a name or password in it"),
        ({"key_variable": "NO_SUCH_KEY"}, r"the environment has no NO_SUCH_KEY"),
        ({"model": ""}, r"judge\.endpoint\.model: must be set"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_sent(settings: dict[str, str], says_: str) -> None:
    with serving(says("refused")) as served:
        with pytest.raises(UserError, match=says_):
            endpoint(served, **settings).judge([BREAD])
        assert served.asked == []


def test_a_question_without_a_place_for_the_answer_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text("Q {request}")
    with serving(says("refused")) as served, pytest.raises(UserError, match=r"question\.txt: has no \{answer\}"):
        endpoint(served, question=file).require_ready()
