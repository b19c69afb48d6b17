import hashlib

import numpy as np
import pytest

from dist_moe.stats.masks import ExpertMasks, mask_hash

MASKS = ExpertMasks(np.array([[[1, 0, 0], [0, 1, 1]], [[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], bool))


def test_union_and_sizes():
    assert MASKS.union().tolist() == [[True, False, False], [False, True, True]]
    assert MASKS.num_experts_B.tolist() == [3, 1, 0]


def test_hash_is_sha256_of_shape_and_bits():
    # 100 011 padded with zeros: 0b10001100.
    assert mask_hash(MASKS.masks_BLE[0]) == hashlib.sha256(b"2x3:\x8c").hexdigest()
    assert MASKS.hash(0) == mask_hash(MASKS.masks_BLE[0])


def test_hash_depends_on_values_only():
    mask_LE = np.random.default_rng(0).random((16, 64)) < 0.1
    expected = mask_hash(mask_LE)
    assert mask_hash(np.asfortranarray(mask_LE)) == expected
    assert mask_hash(np.repeat(mask_LE, 2, axis=1)[:, ::2]) == expected


def test_hash_differs_with_any_bit_and_with_the_shape():
    mask_LE = np.random.default_rng(0).random((4, 6)) < 0.5
    hashes = {mask_hash(mask_LE), mask_hash(mask_LE.reshape(6, 4)), mask_hash(mask_LE.reshape(3, 8))}
    for position in range(24):
        changed = mask_LE.copy()
        changed.ravel()[position] ^= True
        hashes.add(mask_hash(changed))
    assert len(hashes) == 27


def test_masks_are_bool():
    with pytest.raises(AssertionError):
        ExpertMasks(np.zeros((1, 2, 3), np.uint8))
