"""Loads models of the hub in a process of its own by plain transformers, without a line of ours.

python -m tests.hub_loading    reads a JSON list of owner/name; prints one JSON line for each: {tensor: SHA-256}
"""

import hashlib
import json
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def digests(path: str) -> dict[str, str]:
    """Of each tensor of a model, in a directory or a repository; the tokenizer's words beside them."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path, dtype="auto"), AutoTokenizer.from_pretrained(path)
    found = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()}
    return found | {"tokenizer": hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab())).encode()).hexdigest()}


if __name__ == "__main__":
    for name in json.load(sys.stdin):
        print(json.dumps(digests(name)), flush=True)
