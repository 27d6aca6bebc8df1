"""Counter-based random words: Philox 4×32-10 (Salmon et al. 2011), whole arrays at a time.

A word depends on its key and its counter alone, so any range of draws can be made anywhere, in any
order, by any number of workers.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def key(*parts: int | str) -> tuple[int, int]:
    """A key of two 32-bit words from any names and numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox(key: tuple[int, int], counters: Words) -> Words:
    """Four random words for each counter of four words: uint32 [n, 4] from uint32 [n, 4]."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(key: tuple[int, int], numbers: NDArray[np.int64], count: int) -> Words:
    """`count` random words for each number (0 or more, up to 2⁶³): uint32 [n, count]."""
    blocks = -(-count // 4)
    counters = np.empty((len(numbers), blocks, 4), np.uint32)
    wide = np.asarray(numbers, np.uint64)[:, None]
    counters[..., 0] = wide & _LOW
    counters[..., 1] = wide >> _SHIFT
    counters[..., 2] = np.arange(blocks, dtype=np.uint32)
    counters[..., 3] = 0
    return philox(key, counters.reshape(-1, 4)).reshape(len(numbers), blocks * 4)[:, :count]


def permutation(key: tuple[int, int], size: int) -> NDArray[np.int64]:
    """A random order of 0 … size − 1: the indices that sort as many random words."""
    blocks = np.arange(-(-size // 4), dtype=np.int64)
    return np.argsort(words(key, blocks, 4).reshape(-1)[:size], kind="stable")


def integers(random_words: Words, bound: int) -> NDArray[np.int64]:
    """Words as integers in [0, bound), almost equally likely for bounds far below 2³²."""
    return (random_words.astype(np.uint64) * np.uint64(bound) >> _SHIFT).astype(np.int64)
