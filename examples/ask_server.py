"""Ask a server for the routes of prompts: which experts each of their tokens was sent to.

    dist-moe count --config run.yaml --requests requests.jsonl
    python examples/ask_server.py requests.jsonl routes.jsonl --server vllm --url http://localhost:8000 --model NAME
    dist-moe count --config run.yaml --routes routes.jsonl

The server must have been started with --enable-return-routed-experts; docs/servers.md says more. Each line of the
result has the id of a prompt and what the server has answered. Prompts that it has already are not asked for again.
Python's standard library is enough, so this runs wherever the server can be reached.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PLACES = {"vllm": "/v1/completions", "sglang": "/generate"}


def body(server: str, model: str | None, request: dict[str, Any]) -> dict[str, Any]:
    """What is sent for one prompt: its token ids, so that no template or tokenizer of the server comes into play."""
    ids, most = request["prompt_token_ids"], request["max_tokens"]
    if server == "vllm":
        settings = {"max_tokens": most, "temperature": 0, "return_token_ids": True}
        return {"model": model, "prompt": ids, **settings}
    settings = {"max_new_tokens": most, "temperature": 0}
    return {"input_ids": ids, "sampling_params": settings, "return_routed_experts": True}


def ask(url: str, content: dict[str, Any], seconds: float) -> Any:
    """The server's answer, as it is."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=seconds) as response:
        return json.load(response)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requests", type=Path, help="what `dist-moe count --requests` has written")
    parser.add_argument("out", type=Path, help="file of routes; what is there stays")
    parser.add_argument("--server", choices=[*PLACES], required=True)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--model", help="name under which vLLM serves the model")
    parser.add_argument("--at-once", type=int, default=8, help="requests that are under way (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=600, help="longest wait for an answer (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.server == "vllm" and args.model is None:
        parser.error("--server vllm needs --model")
    there = {json.loads(line)["id"] for line in args.out.open(encoding="utf-8")} if args.out.exists() else set()
    requests = [json.loads(line) for line in args.requests.open(encoding="utf-8")]
    asked = [request for request in requests if request["id"] not in there]

    def answer(request: dict[str, Any]) -> Any:
        return ask(args.url + PLACES[args.server], body(args.server, args.model, request), args.seconds)

    with args.out.open("a", encoding="utf-8") as out, ThreadPoolExecutor(args.at_once) as pool:
        for request, response in zip(asked, pool.map(answer, asked), strict=True):
            out.write(json.dumps({"id": request["id"], "response": response}) + "\n")
            out.flush()
    print(f"{args.out}: {len(asked)} answers, {len(there)} were there")


if __name__ == "__main__":
    main()
