"""What a checkpoint says of generation changes no answer and no count; a loop of argmax is the reference."""

import pytest
import torch
from transformers import GenerationConfig

from dist_moe.data.tokens import Encoded
from dist_moe.evaluation.score import Scorable, Subject, score_rows
from dist_moe.measure.collect import count_rows
from dist_moe.model.generate import Sampling
from dist_moe.model.model import adopt
from tests.tiny import E, K, tiny_model
from tests.unit.model.test_generate import CPU, EOS, NEW, likes_to_end, prompts

LOGITS = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 2.0,
    "bad_words_ids": [[9], [10]],
    "suppress_tokens": [8, 9, 11],
    "begin_suppress_tokens": [12, 13, 14],
    "forced_eos_token_id": 5,
    "sequence_bias": [[[9], 50.0]],
    "guidance_scale": 3.0,
    "min_length": 40,
    "min_new_tokens": 40,
    "exponential_decay_length_penalty": (2, 3.0),
    "watermarking_config": {"bias": 5.0, "greenlist_ratio": 0.5, "seeding_scheme": "lefthash"},
    "renormalize_logits": True,
}
DRAWN = {"do_sample": True, "temperature": 3.0, "top_k": 5, "top_p": 0.5, "min_p": 0.2, "typical_p": 0.3}
ENDS = {"stop_strings": ["w1"], "max_time": 0.001, "max_length": 7, "max_new_tokens": 2, "eos_token_id": [9, 10, 11]}
SHAPES = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True}
BEAMS = {"num_beams": 4, "num_return_sequences": 2, "use_cache": False, "length_penalty": 3.0, "early_stopping": True}
SAID = {
    "logits, ends, output": LOGITS | ENDS | SHAPES,
    "beams without cache": DRAWN | BEAMS,
    "static cache, assisted": {"cache_implementation": "static", "prompt_lookup_num_tokens": 3},
}


def told(said):
    """A model whose generation settings say so, as from its generation_config.json."""
    model = likes_to_end(tiny_model("mixtral"))
    model.generation_config = GenerationConfig(**said)
    return adopt(model, CPU)


def answers(model, rows):
    scores = score_rows(
        {"after": Subject(model)},
        [Scorable(Encoded(row.prompt_ids, (9, 10)), ()) for row in rows],
        max_new_tokens=NEW,
        micro_batch_tokens=60,
        pad_id=0,
        eos_ids=(EOS,),
        comm=CPU,
        progress=lambda _: None,
    )
    return [[*score.replies["after"].ids] for score in scores]


@pytest.fixture(scope="module")
@torch.no_grad()
def expected():
    """Prompts, and of each the answer by argmax, and the routing of its tokens but the last."""
    rows, model, out = prompts(3), likes_to_end(tiny_model("mixtral")), []
    for row in rows:
        ids, start = list(row.prompt_ids), len(row.prompt_ids)
        while len(ids) < start + NEW and (len(ids) == start or ids[-1] != EOS):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        logits = model(torch.tensor([ids]), output_router_logits=True, use_cache=False).router_logits
        chosen = [layer[start:-1].topk(K).indices.flatten() for layer in logits]
        out.append((ids[start:], [torch.bincount(each, minlength=E).tolist() for each in chosen]))
    return rows, out


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_no_setting_of_the_checkpoint_reaches_answers_or_counts(said, expected):
    rows, out = expected
    sampling = Sampling(max_new_tokens=NEW, temperature=0.0, seed=0, eos_ids=(EOS,))
    model = told(said)
    found = count_rows(model, rows, tokens=sampling, micro_batch_tokens=10_000, pad_id=0, comm=CPU)
    assert found.counts_PLE.tolist() == [counts for _, counts in out]
    assert found.tokens_P.tolist() == [len(ids) - 1 for ids, _ in out]
    model.module.generation_config = GenerationConfig(**said)
    assert answers(model, rows) == [ids for ids, _ in out]
    assert len({len(ids) for ids, _ in out}) > 1


def test_provenance_has_every_setting_and_the_ends():
    greedy = Sampling(max_new_tokens=5, temperature=0.0, seed=3, eos_ids=(7, 9))
    drawn = Sampling(max_new_tokens=5, temperature=0.5, seed=3, eos_ids=(7, 9))
    assert greedy.facts["eos_ids"] == [7, 9]
    for sampling in (greedy, drawn):
        used = sampling.config(pad_id=0, no_token=128).to_dict()
        own = {key: value for key, value in used.items() if value not in (None, {}, [])}
        own = {key: own[key] for key in own.keys() - {"pad_token_id", "eos_token_id", "transformers_version"}}
        assert own.items() <= sampling.facts.items()
    assert greedy.facts != drawn.facts
