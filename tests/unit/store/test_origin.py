import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore, require_same_origin
from dist_moe.store.origin import NO_WEIGHTS
from tests.unit.store.example import BATCH_IDS, PROVENANCE, write_example

HASHES = {name: PROVENANCE[name] for name in ("model_hash", "tokenizer_hash", "data_hash", "tokens_hash")}


@pytest.fixture
def store(tmp_path):
    return MaskStore.open(write_example(tmp_path / "masks.zarr"))


def test_the_same_origin_is_accepted(store):
    require_same_origin(store, **HASHES, batch_ids=BATCH_IDS)
    require_same_origin(store, **HASHES, batch_ids=list(BATCH_IDS))


def test_what_a_run_does_not_have_is_not_compared(store):
    require_same_origin(store)
    require_same_origin(store, model_hash=PROVENANCE["model_hash"])


@pytest.mark.parametrize(
    ("what", "stored", "todo"),
    [
        ("model", "a1" * 6, "set model.path to"),
        ("tokenizer", "b2" * 6, "set model.path or data.chat_template to"),
        ("data", "c3" * 6, "set data.paths to"),
        ("tokens", "d4" * 6, "set data.chat_template, data.template_kwargs, data.template_date and data.max_length to"),
    ],
)
def test_what_differs_in_provenance_is_named(store, what, stored, todo):
    with pytest.raises(UserError) as error:
        require_same_origin(store, **HASHES | {f"{what}_hash": "0123456789abcdef"}, batch_ids=BATCH_IDS)
    assert str(error.value) == (
        f"{store.path} was made from other {what}: hash {stored} there, 0123456789ab in this run; {todo} what the "
        "masks were made from, or run the analysis again"
    )


def test_masks_of_routes_without_weights_are_refused(store):
    store.provenance = PROVENANCE | {"model_hash": NO_WEIGHTS}
    require_same_origin(store, tokens_hash=PROVENANCE["tokens_hash"])
    with pytest.raises(UserError, match="does not say of which model's weights it is: it was counted from routes"):
        require_same_origin(store, **HASHES, batch_ids=BATCH_IDS)


@pytest.mark.parametrize(
    ("batch_ids", "difference"),
    [
        ((BATCH_IDS[0], BATCH_IDS[2], BATCH_IDS[1]), "3 in this run, batch 1 is 11bb22cc33dd there and 22cc33dd44ee"),
        (BATCH_IDS[:2], "2 in this run, batch 2 is 22cc33dd44ee there and missing here"),
        ((*BATCH_IDS, "33dd44ee55ff66aa"), "4 in this run, batch 3 is missing there and 33dd44ee55ff here"),
        ((), "0 in this run, batch 0 is 00aa11bb22cc there and missing here"),
    ],
)
def test_other_batches_or_another_order(store, batch_ids, difference):
    with pytest.raises(UserError) as error:
        require_same_origin(store, **HASHES, batch_ids=batch_ids)
    assert "was made for other batches: of 3 there and" in str(error.value)
    assert difference in str(error.value)
    assert "set data.paths, batches and seed to what the masks were made with" in str(error.value)
