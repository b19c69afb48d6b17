"""Records of routes: each form that a server sends gives the same routes; what is wrong in one is said in one line."""

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.routes.arrays import integers
from dist_moe.routes.counting import RouteShape, require_tokens, routed
from dist_moe.routes.record import id_of, record_of
from tests.recorded import FORMS, as_int32, as_lists, as_npy, base64_of, npy

L, E, K, DENSE = 3, 8, 2, 1
SHAPE = RouteShape(
    layer_names=tuple(f"model.layers.{DENSE + layer}.mlp.experts" for layer in range(L)),
    num_decoder_layers=DENSE + L,
    num_experts=E,
    num_scored=E + 1,  # one null expert
    experts_per_token=K,
)


def found(num_prompt=5, num_answer=3):
    """Routes that a router could have given, other ones for each token and layer."""
    generator = np.random.default_rng(num_prompt)
    tokens = num_prompt + num_answer - 1
    routes = generator.permuted(np.tile(np.arange(E), (tokens, L, 1)), axis=2)[:, :, :K]
    return {"prompt": list(range(10, 10 + num_prompt)), "answer": list(range(num_answer)), "routes": routes}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("numbers", [(5, 3), (5, 1), (1, 1)])
def test_all_forms_are_the_same_routes(form, numbers):
    answer = found(*numbers)
    line = form("name", answer, DENSE)
    assert id_of(line, "here") == "name"
    of = routed(record_of(line, "here"), SHAPE)
    assert (of.num_prompt, of.num_answer) == numbers
    assert np.array_equal(of.routes_TLk, answer["routes"])
    assert np.array_equal(of.prompt.routes_TLk, answer["routes"][: numbers[0]])


def test_an_array_may_be_in_any_order_and_type():
    array = np.arange(24).reshape(4, 3, 2)
    for each in (array, np.asfortranarray(array), array.astype(">i2"), array.astype(np.uint8)):
        assert np.array_equal(integers(npy(each), "here"), array)


def test_counts_are_those_of_a_loop_and_leave_out_null_experts():
    answer = found(6, 1)
    answer["routes"][2, 1, 0] = E
    counted = np.array([0, 2, 3])
    counts = routed(record_of(as_npy("name", answer), "here"), SHAPE).counts(counted, SHAPE)
    expected = np.zeros((L, E), int)
    for token in counted:
        for layer in range(L):
            for expert in answer["routes"][token, layer]:
                if expert < E:
                    expected[layer, expert] += 1
    assert np.array_equal(counts, expected)
    assert counts.sum() == 3 * L * K - 1


def changed(form, change):
    """A line, changed; the answer part of it is what `change` gets."""
    line = form("name", found(), DENSE)
    response = line.get("response", line)
    response = response.get("body", response)
    change(response, response["choices"][0] if "choices" in response else response)
    return line


def put(name, value):
    return lambda response, choice: choice.update({name: value})


def of_meta(name, value):
    return lambda response, choice: response["meta_info"].update({name: value})


def more_tokens(response, choice):
    response["usage"]["prompt_tokens"] += 1


def longer_answer(response, choice):
    choice["token_ids"] += [1, 2, 3]


def two_choices(response, choice):
    response["choices"] *= 2


def no_routes(response, choice):
    del response["prompt_routed_experts"], choice["routed_experts"]


WRONG = {
    "no routes": (as_lists, no_routes, "here: no `routed_experts`: start the server with"),
    "two answers": (as_lists, two_choices, "expected one of `choices`"),
    "from a later token on": (as_int32, of_meta("routed_experts_start_len", 4), "its routes begin at token 4"),
    "an envelope from a later token on": (as_lists, put("routed_experts", {"start": 2}), "its routes begin at token 2"),
    "words": (as_lists, put("routed_experts", [["a"]]), "`routed_experts` holds <U1"),
    "fractions": (as_lists, put("routed_experts", [[[0.5, 1]]]), "`routed_experts` holds float64"),
    "ragged lists": (as_lists, put("routed_experts", [[[1, 2]], [[1]]]), "lists are of different lengths"),
    "long numbers": (as_lists, put("routed_experts", [[[10**30, 2]]]), "`routed_experts`"),
    "other layers": (as_lists, put("routed_experts", np.zeros((2, 2, K), int).tolist()), "of the shape (2, 2, 2)"),
    "another k": (as_lists, put("routed_experts", np.zeros((2, L, 1), int).tolist()), "4 or 3 layers of 2 experts"),
    "more prompt": (as_lists, more_tokens, "`prompt_routed_experts` is of 5 tokens, and the prompt has 6"),
    "fewer than the prompt": (as_npy, put("prompt_token_ids", [*range(8)]), "routes of 7 tokens, and the prompt has 8"),
    "a longer answer": (as_npy, longer_answer, "the answer 6: expected 10"),
    "no base64": (as_npy, put("routed_experts", "%%%"), "`routed_experts` is '%%%', which is no base64 text"),
    "half an array": (as_npy, put("routed_experts", npy(np.zeros((9, L, K), int))[:-8]), "cut short"),
    "half a header": (as_npy, put("routed_experts", npy(np.zeros((9, L, K)))[:16]), "no .npy array"),
    "pickled objects": (as_npy, put("routed_experts", npy(np.array([{}]))), "holds pickled Python objects"),
    "numbers of no layers": (as_int32, of_meta("routed_experts", base64_of(np.zeros(7), "<i4")), "7 numbers without a"),
    "no numbers": (as_int32, of_meta("routed_experts", base64_of(np.zeros(7), "u1")), "7 bytes are no int32"),
    "bytes of another shape": (
        as_lists,
        put("routed_experts", {"data": "AAAA", "shape": [9, 3, 2], "dtype": "uint8"}),
        "`data` has 3 bytes, which is not [9, 3, 2] of uint8",
    ),
    "a negative shape": (
        as_lists,
        put("routed_experts", {"data": "", "shape": [-1, 0, 2], "dtype": "uint8"}),
        "a list in `shape`",
    ),
    "a type of objects": (
        as_lists,
        put("routed_experts", {"data": "", "shape": [0], "dtype": "O"}),
        "in `dtype` uint8",
    ),
    "a number of tokens in words": (as_int32, of_meta("prompt_tokens", "five"), "`prompt_tokens` is 'five'"),
    "two lists of ids": (as_npy, put("prompt_token_ids", [[1], [2]]), "expected one list of token ids"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_record_is_said(name):
    form, change, words = WRONG[name]
    with pytest.raises(UserError) as error:
        routed(record_of(changed(form, change), "here"), SHAPE)
    assert words in str(error.value)
    assert str(error.value).startswith("here")
    assert "\n" not in str(error.value)


def test_numbers_without_a_shape_need_their_tokens_if_two_numbers_of_layers_fit():
    """12 tokens of 3 layers are as many numbers as 9 tokens of 4."""
    raw = base64_of(np.zeros(12 * L * K), "<i4")
    with pytest.raises(UserError, match="say `prompt_tokens` and `completion_tokens`"):
        routed(record_of({"routed_experts": raw}, "here"), SHAPE)
    numbers = {"prompt_tokens": 9, "completion_tokens": 1}
    assert routed(record_of({"routed_experts": raw, "meta_info": numbers}, "here"), SHAPE).routes_TLk.shape == (9, L, K)


@pytest.mark.parametrize(
    ("place", "expert", "words"),
    [
        ((3, 1, 0), E + 1, "here: token 3 has expert 9 in MoE layer 1, and the model has 0 to 8"),
        ((3, 1, 0), -1, "the server did not record it"),
        ((3, 1), 4, "here: token 3 has expert 4 twice in MoE layer 1"),
    ],
)
def test_what_no_router_gives_is_refused(place, expert, words):
    answer = found()
    answer["routes"][place] = expert
    of = routed(record_of(as_lists("name", answer), "here"), SHAPE)
    with pytest.raises(UserError) as error:
        of.counts(np.arange(5), SHAPE)
    assert words in str(error.value)
    of.counts(np.arange(3), SHAPE)  # which are not those tokens


def test_a_token_without_a_route_is_refused():
    of = routed(record_of(as_lists("name", found()), "here"), SHAPE)
    of.counts(np.array([1, 6]), SHAPE)
    with pytest.raises(UserError, match="token 7 is counted, and there are routes of 7 tokens"):
        of.counts(np.array([1, 7]), SHAPE)
    with pytest.raises(UserError, match="token 5 is counted, and there are routes of 5 tokens"):
        of.prompt.counts(np.array([1, 5]), SHAPE)


def test_other_tokens_are_refused():
    record = record_of(as_npy("name", found()), "here")
    of = routed(record, SHAPE)
    require_tokens(record, of, [10, 11, 12, 13, 14, 99], [5, 6])
    with pytest.raises(UserError, match="here: token 2 is 12, and in this run 99: the server has read other tokens"):
        require_tokens(record, of, [10, 11, 99, 13, 14, 15], [5, 6])
    with pytest.raises(UserError, match="the prompt has 5 tokens, and in this run 4 or 6: the server has read other"):
        require_tokens(record, of, [10, 11, 12, 13, 14, 15], [4, 6])
