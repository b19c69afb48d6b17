"""What a server that records routes would answer: by plain transformers and hooks of its own, no code of ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

ROUTER = (".mlp.gate", ".mlp.router")


@torch.no_grad()
def routes_of(model: PreTrainedModel, ids: Sequence[int]) -> np.ndarray:
    """int64 [T, MoE layers, k]: what each layer's router has chosen for each token, as the router gives it back."""
    seen: list[np.ndarray] = []
    routers = [module for name, module in model.named_modules() if name.endswith(ROUTER) and hasattr(module, "weight")]
    handles = [each.register_forward_hook(lambda m, args, out: seen.append(out[-1].numpy())) for each in routers]
    model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(routers) > 0
    return np.stack(seen, axis=1).astype(np.int64)


@torch.no_grad()
def served(model: PreTrainedModel, ids: Sequence[int], max_tokens: int, ends: Sequence[int]) -> dict[str, Any]:
    """The greedy answer to token ids, and the routes of all tokens but the last, which no pass has read."""
    answer: list[int] = []
    while len(answer) < max_tokens and not (answer and answer[-1] in ends):
        logits = model(input_ids=torch.tensor([[*ids, *answer]]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return {"prompt": list(ids), "answer": answer, "routes": routes_of(model, [*ids, *answer[:-1]])}


def npy(array: np.ndarray) -> str:
    stream = BytesIO()
    np.save(stream, array)
    return base64.b64encode(stream.getvalue()).decode()


def base64_of(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(array.astype(dtype).tobytes()).decode()


def every_layer(routes: np.ndarray, dense: int) -> np.ndarray:
    """With rows of zeros for the dense layers, which come first."""
    return np.concatenate([np.zeros_like(routes[:, :1]).repeat(dense, 1), routes], axis=1)


def as_lists(name: str, found: dict[str, Any], dense: int = 0) -> dict[str, Any]:
    """vLLM 0.21: lists, of the prompt apart."""
    num = len(found["prompt"])
    usage = {"prompt_tokens": num, "completion_tokens": len(found["answer"])}
    choice = {"index": 0, "text": "...", "routed_experts": found["routes"][num:].tolist()}
    response = {"id": "cmpl-0", "choices": [choice], "usage": usage}
    return {"id": name, "response": response | {"prompt_routed_experts": found["routes"][:num].tolist()}}


def as_npy(name: str, found: dict[str, Any], dense: int = 0) -> dict[str, Any]:
    """vLLM 0.22 and later, as a line of a batch's results: the bytes of a .npy file in base64, ids beside it."""
    choice = {"routed_experts": npy(found["routes"].astype(np.uint8)), "token_ids": found["answer"]}
    body = {"id": "cmpl-0", "choices": [choice | {"prompt_token_ids": found["prompt"]}]}
    return {"id": "batch-0", "custom_id": name, "response": {"status_code": 200, "body": body}}


def as_chat(name: str, found: dict[str, Any], dense: int = 0) -> dict[str, Any]:
    """vLLM's chat endpoint: the prompt's ids are beside the choices; models of more than 256 experts send uint16."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "..."}, "finish_reason": "length"}
    choice |= {"routed_experts": npy(found["routes"].astype(np.uint16)), "token_ids": found["answer"]}
    usage = {"prompt_tokens": len(found["prompt"]), "completion_tokens": len(found["answer"])}
    response = {"id": "chatcmpl-0", "object": "chat.completion", "choices": [choice], "usage": usage}
    return {"id": name, "response": response | {"prompt_token_ids": found["prompt"], "kv_transfer_params": None}}


def as_int32(name: str, found: dict[str, Any], dense: int = 0) -> dict[str, Any]:
    """SGLang: int32 of all layers in base64, without a shape."""
    numbers = {"prompt_tokens": len(found["prompt"]), "completion_tokens": len(found["answer"])}
    routes = base64_of(every_layer(found["routes"], dense), "<i4")
    return {"id": name, "text": "...", "output_ids": found["answer"], "meta_info": numbers | {"routed_experts": routes}}


def as_sglext(name: str, found: dict[str, Any], dense: int = 0) -> dict[str, Any]:
    """SGLang's OpenAI endpoints: the same bytes in `sglext`, beside the choices, and no ids."""
    routes = base64_of(every_layer(found["routes"], dense), "<i4")
    usage = {"prompt_tokens": len(found["prompt"]), "completion_tokens": len(found["answer"]), "total_tokens": 0}
    choice = {"index": 0, "text": "...", "logprobs": None, "finish_reason": "length", "matched_stop": None}
    response = {"id": "0", "object": "text_completion", "choices": [choice], "usage": usage}
    return {"id": name, "response": response | {"sglext": {"routed_experts": routes}}}


def as_envelope(name: str, found: dict[str, Any], dense: int = 0) -> dict[str, Any]:
    """Dynamo: shape and type beside the bytes."""
    routes = every_layer(found["routes"], dense)
    envelope = {"data": base64_of(routes, "<u2"), "shape": list(routes.shape), "dtype": "uint16", "start": 0}
    return {"id": name, "routed_experts": envelope, "prompt_token_ids": found["prompt"], "token_ids": found["answer"]}


FORMS = (as_lists, as_npy, as_chat, as_int32, as_sglext, as_envelope)


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_npz(path: Path, found: dict[str, dict[str, Any]]) -> Path:
    arrays = {}
    for name, each in found.items():
        arrays |= {f"{name}/routed_experts": each["routes"], f"{name}/prompt_token_ids": np.array(each["prompt"])}
        arrays |= {f"{name}/token_ids": np.array(each["answer"])}
    np.savez_compressed(path, **arrays)
    return path
