from __future__ import annotations

import io

import numpy as np
from PIL import Image

from keras_deeplab.data.difference_hash import NEAR, difference_hash, near_pairs, nearest


def photograph(seed, size=(120, 160)):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))


def distance(one, other):
    return sum(bin(a ^ b).count("1") for a, b in zip(one, other, strict=True))


def test_copies_are_near_and_others_far():
    image = photograph(0)
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=60)
    small = Image.fromarray(image).resize((120, 90))
    for copy in (np.asarray(Image.open(stored)), np.asarray(small), image // 2 + 20):
        assert distance(difference_hash(image), difference_hash(copy)) <= NEAR
    others = [difference_hash(photograph(seed)) for seed in range(1, 40)]
    assert min(distance(difference_hash(image), other) for other in others) > 5 * NEAR


def pairs(hashes):
    return sorted(pair for found in near_pairs(hashes) for pair in found.tolist())


def test_near_pairs_against_loops():
    rng = np.random.default_rng(0)
    hashes = [rng.bytes(64) for _ in range(1500)]
    for place, source in ((3, 1400), (1200, 7), (1300, 1301)):
        hashes[place] = bytes([hashes[source][0] ^ 0b101, *hashes[source][1:]])
    hashes += [bytes(64)] * 3  # plain images
    assert pairs(hashes) == [[3, 1400], [7, 1200], [1300, 1301]]
    assert pairs([]) == []


def test_near_pairs_differ_in_any_words_of_which_few_are_compared(monkeypatch):
    rng, hashes = np.random.default_rng(2), []
    for bits in (NEAR, NEAR + 1):
        for word in range(8):  # all of them in one word
            one = np.frombuffer(rng.bytes(64), np.uint64)
            other = one.copy()
            other[word] ^= np.uint64(2**bits - 1)
            hashes += [one.tobytes(), other.tobytes()]
    compared, count = [], np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda a: compared.append(a.size) or count(a))
    assert pairs(hashes) == [[k, k + 1] for k in range(0, 16, 2)]
    assert sum(compared) < 4 * len(hashes) ** 2


def test_nearest_against_loops():
    rng = np.random.default_rng(1)
    others = [rng.bytes(64) for _ in range(300)]
    hashes = [rng.bytes(64) for _ in range(40)] + [others[5], bytes(64)]  # a copy, a plain image
    hashes[7] = others[9][:52] + rng.bytes(12)
    places, found = nearest(hashes, others)
    assert places.tolist() == list(range(40))
    bits = np.array([[distance(one, other) for other in others] for one in hashes[:41]])
    np.testing.assert_allclose(found, bits.min(1)[:40] / np.median(np.median(bits, 1)), rtol=1e-6)
    assert found[7] < 0.35 < np.delete(found, 7).min()
    assert nearest(hashes, [])[0].size == 0 == nearest([], others)[1].size


def test_stripes_are_not_alike():
    def striped(seed):
        rng = np.random.default_rng(seed)
        stripes = 128 + 40 * np.sin(np.arange(96) * 2 * np.pi / 15.7)
        noise = rng.normal(0, 12, (9, 12)).repeat(8, 0).repeat(8, 1)
        return np.clip(stripes + noise, 0, 255).astype(np.uint8)[..., None]

    assert pairs([difference_hash(striped(seed)) for seed in range(30)]) == []
