"""The experts' kernels: where they are used, and what they compute. On a GPU `tools/gpu_check` compares them too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dist_moe.config.schema import ModelConfig
from dist_moe.errors import UserError
from dist_moe.model.model import adopt
from dist_moe.moe import kernels
from dist_moe.moe.bank import train_from
from dist_moe.moe.liger import use_liger
from dist_moe.parallel.comm import SoloComm
from tests.tiny import CONFIGS, tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))
TRITON = Path(".cache/triton").resolve()
"""Where `make test-all` puts Triton, which torch's builds for CPUs come without."""


@pytest.mark.parametrize("family", CONFIGS)
def test_kernels_are_for_families_that_compute_silu_of_the_gate_times_up(family):
    for layer in adopt(tiny_model(family), CPU).layers:
        width = next(weight for name, weight in layer.bank.items() if name == layer.up_name)
        pre = torch.randn(5, width.shape[2 if layer.transposed else 1], generator=torch.Generator().manual_seed(0))
        gate, up = pre.chunk(2, -1)
        right = F.silu(gate) * up
        found = layer.activation(pre)
        assert layer.is_swiglu == (found.shape == right.shape and torch.allclose(found, right))
    assert layer.is_swiglu == (family != "gpt_oss")


def test_on_a_cpu_there_are_none():
    assert not kernels.usable(torch.zeros(1))


def _double_gate(pre):
    gate, up = pre.double().chunk(2, -1)
    return (F.silu(gate) * up).to(pre.dtype)


def _double_backward(pre, din, weights):
    gate, up = pre.double().chunk(2, -1)
    sigmoid, dout = gate.sigmoid(), din.double() * weights.double()
    dgate = dout * up * sigmoid * (1 + gate * (1 - sigmoid))
    dots = (din.double() * gate * sigmoid * up).sum(1)
    return torch.cat([dgate, dout * gate * sigmoid], 1).to(pre.dtype), dots.to(pre.dtype)


def _double_combine(rows, position, weights):
    return (rows.double()[position] * weights.double()[..., None]).sum(1).to(rows.dtype)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_a_layer_that_uses_them_computes_what_plain_transformers_does(family, monkeypatch):
    called = set()

    def stands_in(name, function):
        monkeypatch.setattr(kernels, name, lambda *args: called.add(name) or function(*args))

    stands_in("usable", lambda tensor: True)
    stands_in("gate", _double_gate)
    stands_in("gate_backward", _double_backward)
    stands_in("combine", _double_combine)
    plain, ids = tiny_model(family), token_ids(1)
    expected = plain(input_ids=ids, labels=ids)
    expected.loss.backward()
    model = adopt(tiny_model(family), CPU)
    train_from(model.layers, 0)
    for layer in model.layers:
        layer.grads = {slot: layer.layout.views(torch.zeros(layer.layout.size)) for slot in (0, 3)}
    out = model.module(input_ids=ids, labels=ids, use_cache=False)
    out.loss.backward()
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=2e-6)
    for index, layer in enumerate(model.layers):
        experts = plain.get_submodule(model.shape.layer_names[index])
        for slot, weights in layer.grads.items():
            for name, gradient in weights.items():
                right = experts.get_parameter(name).grad[slot]
                torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-6)
    assert called == {"usable", "combine"} | (set() if family == "gpt_oss" else {"gate", "gate_backward"})


@pytest.mark.long
@pytest.mark.parametrize("what", ["interpret", "80", "90"])
def test_they_compute_what_float64_does_and_compile_for_gpus(what, tmp_path):
    assert (TRITON / "triton").is_dir(), f"no Triton in {TRITON}: make triton"
    environment = {**os.environ, "PYTHONPATH": f"{TRITON}{os.pathsep}.", "TRITON_CACHE_DIR": str(tmp_path)}
    if what == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, str(Path(__file__).with_name("interpreted.py")), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_liger_without_a_gpu_is_refused():
    assert ModelConfig(path=Path("m")).kernels == "torch"
    with pytest.raises(UserError, match=r"^model.kernels: liger needs a GPU, and this runs on cpu: set model.kernels"):
        use_liger(tiny_model("qwen3_moe"), torch.device("cpu"))


def test_liger_that_is_not_installed_is_named():
    with pytest.raises(UserError, match=r"No module named 'liger_kernel': pip install liger-kernel, or set model.kern"):
        use_liger(tiny_model("qwen3_moe"), torch.device("cuda"))
