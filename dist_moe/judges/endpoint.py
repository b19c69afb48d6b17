"""A model that judges behind an OpenAI-compatible endpoint, as vLLM, SGLang, llama.cpp and others serve one.

Nothing is sent but to the URL in the settings: no proxy of the environment is used, and no redirection is followed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from dist_moe.errors import UserError, shown
from dist_moe.files import read_json, write_json_atomic
from dist_moe.judges.judge import JUDGES, Answered, Judge, Judgement
from dist_moe.judges.question import VERDICT_QUESTION, brief, question, read_question, verdict_of
from dist_moe.judges.spoken import spoken
from dist_moe.ranges import Count, NonNegative, NonNegativeInt, Positive

LARGEST_REPLY = 2**22
"""Bytes."""
FAILURES_IN_A_ROW = 3
"""After so many answers that could not be asked about, the rest is not tried."""
RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses that may pass."""


class _NotAskedError(Exception):
    """A request had no reply. `may_pass`: another try may have one, not before `wait` seconds if the server says so."""

    def __init__(self, why: str, *, may_pass: bool, wait: float = 0.0) -> None:
        super().__init__(why)
        self.may_pass, self.wait = may_pass, wait


@JUDGES.register
@dataclass(frozen=True, kw_only=True)
class Endpoint(Judge):
    """Asks a model for each answer, one after the other, at temperature 0."""

    name = "endpoint"
    required = ("url", "model")

    url: str = ""
    """Base URL of an OpenAI-compatible server on your own network, such as http://localhost:8000/v1: requests go to its
    /chat/completions, and nowhere else. They hold the prompts and answers of your rows."""
    model: str = ""
    """Name of the model, as the server knows it."""
    key_variable: str = ""
    """Name of the environment variable with the server's key; empty: none is sent. The key is written nowhere."""
    question: Path | None = None
    """A text file that asks, with {request} and {answer} in it, for REFUSED, PARTIAL or COMPLIED as the first word of
    the reply. None: a question of ours."""
    max_tokens: Count = 512
    """Longest reply, the model's thoughts included."""
    seconds: Positive = 60.0
    """How long one request may take."""
    retries: NonNegativeInt = 4
    """Further tries of a request that failed in a way that may pass: no connection, no reply in time, HTTP 429, 5xx."""
    first_wait: NonNegative = 1.0
    """Seconds before the second try; before each one after it, twice as long, or as long as the server asks for, up to
    `seconds`."""
    budget: Count = 10_000
    """Most requests to the server for one set of answers, further tries included; then the rest is missing. Replies
    from the cache cost nothing."""
    cache: Path | None = None
    """A directory in which replies are kept, by the hash of their request, so that an evaluation that is run again asks
    for new answers only. None: nothing is kept."""

    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        if not answers:
            return []
        self.require_ready()
        asking = _Asking(self, read_question(self.question, VERDICT_QUESTION))
        return [asking.about(each) for each in answers]

    @property
    def in_words(self) -> str:
        return f"the model {self.model} at {urlsplit(self.url).hostname}" if self.url else "a model behind an endpoint"

    @property
    def facts(self) -> dict[str, Any]:
        paths = {key: str(value) for key, value in (("question", self.question), ("cache", self.cache)) if value}
        return {**super().facts, "question": None, "cache": None, **paths}

    def require_ready(self) -> None:
        """Raises UserError: URL, model, the key's variable or the question cannot be used."""
        super().require_ready()
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UserError(f"{self.setting('url')}: expected http://HOST:PORT/v1 or https, got {shown(self.url)}")
        if parts.username or parts.password:
            raise UserError(f"{self.setting('url')}: has a name or password in it; put the key into key_variable's")
        if self.key_variable and not os.environ.get(self.key_variable):
            raise UserError(
                f"{self.setting('key_variable')}: the environment has no {self.key_variable}; export it, or set none"
            )
        read_question(self.question, VERDICT_QUESTION)


class _NoRedirection(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The reply is then the redirection itself, which is an error of its status."""


class _Asking:
    """One set of answers: what is left of the budget, and failures so far."""

    def __init__(self, settings: Endpoint, text: str) -> None:
        self.settings, self.text = settings, text
        self.num_left, self.num_failed = settings.budget, 0
        self.opener = build_opener(ProxyHandler({}), _NoRedirection)

    def about(self, answered: Answered) -> Judgement:
        if not spoken(answered):
            return Judgement("missing", "no answer, or only a thought")
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": question(self.text, answered)}],
            "temperature": 0,
            "max_tokens": self.settings.max_tokens,
        }
        kept = self._kept(body)
        if kept and kept.is_file():
            return verdict_of(_reply_of(read_json(kept, "a kept reply"), kept, body))
        if self.num_failed >= FAILURES_IN_A_ROW:
            return Judgement("missing", f"not asked: the {FAILURES_IN_A_ROW} before it had no reply")
        try:
            reply = self._reply(body)
        except _NotAskedError as error:
            self.num_failed += 1
            return Judgement("missing", str(error))
        self.num_failed = 0
        found = verdict_of(reply)
        if kept and found.verdict != "missing":
            write_json_atomic(kept, {"request": body, "reply": reply})
        return found

    def _kept(self, body: dict[str, Any]) -> Path | None:
        if self.settings.cache is None:
            return None
        text = json.dumps({"url": self.settings.url.rstrip("/"), **body}, sort_keys=True)
        digest = sha256(text.encode()).hexdigest()
        return self.settings.cache / digest[:2] / f"{digest}.json"

    def _reply(self, body: dict[str, Any]) -> str:
        """The model's text, after as many tries as are allowed."""
        wait = self.settings.first_wait
        for last in [False] * self.settings.retries + [True]:
            if self.num_left == 0:
                raise _NotAskedError(f"the budget of {self.settings.budget} requests is spent", may_pass=False)
            self.num_left -= 1
            try:
                return self._once(body)
            except _NotAskedError as error:
                if last or not error.may_pass:
                    raise
                time.sleep(min(max(wait, error.wait), self.settings.seconds))
                wait *= 2
        raise AssertionError("the last try returns or raises")

    def _once(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "dist_moe"}
        if self.settings.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[self.settings.key_variable]}"
        request = Request(f"{self.settings.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        until = time.monotonic() + self.settings.seconds
        try:
            with self.opener.open(request, timeout=self.settings.seconds) as response:
                data = b""
                while chunk := response.read1(2**16):
                    data += chunk
                    if time.monotonic() > until:
                        raise _NotAskedError(f"no whole reply in {self.settings.seconds:g} s", may_pass=True)
                    if len(data) > LARGEST_REPLY:
                        raise _NotAskedError(f"the reply is longer than {LARGEST_REPLY} bytes", may_pass=False)
                if response.length:
                    raise _NotAskedError("the reply broke off", may_pass=True)
        except HTTPError as error:
            with error:
                raise _NotAskedError(
                    f"the endpoint answered HTTP {error.code}",
                    may_pass=error.code in RETRIED,
                    wait=_seconds(error.headers.get("Retry-After")),
                ) from None
        except (OSError, HTTPException) as error:  # no connection, none in time, one that broke off
            raise _NotAskedError(f"the endpoint gave no reply: {brief(str(error))}", may_pass=True) from None
        return _content(data)


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header; a date is not waited for."""
    return float(retry_after) if retry_after and re.fullmatch(r"\d{1,6}", retry_after.strip()) else 0.0


def _content(data: bytes) -> str:
    """The text in a chat completion."""
    try:
        document = json.loads(data)
        content = document["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise _NotAskedError(
            f"the reply is no chat completion: {brief(data[:200].decode(errors='replace'))}", may_pass=False
        )
    return content


def _reply_of(document: Any, path: Path, body: dict[str, Any]) -> str:
    """Raises UserError: the file is not what was kept for this request."""
    if not isinstance(document, dict) or document.get("request") != body or not isinstance(document.get("reply"), str):
        raise UserError(f"{path}: is no reply that was kept for this request; remove it")
    return str(document["reply"])
