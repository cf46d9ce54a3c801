"""Duplicates and leaks: which texts are the same, or nearly, inside one list and across two.

Texts are compared by their words: Unicode-normalised (NFKC), case-folded, without punctuation.

- exact: the same characters, whatever the spaces, for Korean is spaced freely; but a space between two digits counts.
- near: the Jaccard index of the two bags of words (a word that occurs twice is in it twice) is at least the threshold.
  At 0.8 one word in nine may be another, at 0.75 one in seven, wherever it stands and however long it is. A Korean word
  counts by its first two syllables, for particles and endings follow. A text of fewer than 8 words is only compared
  exactly: one changed word makes another item of it ("type 1 diabetes", "type 2 diabetes").
- 13-gram: 13 consecutive words in common, as GPT-3's evaluation sets were cleaned: Brown et al. 2020, arXiv:2005.14165,
  appendix C.

Near duplicates are sought with MinHash (Broder 1997, "On the resemblance and containment of documents") in bands, as
training sets are deduplicated (Lee et al. 2021, arXiv:2107.06499), and every pair found is compared exactly.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from itertools import chain
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint32]
Keys = NDArray[np.uint64]
Numbers = NDArray[np.int64]

_SHORTEST = 8  # words of a text that may be a near duplicate
_WINDOW = 13  # words
_PERMUTATIONS = 256
_RECALL = 0.995  # of the pairs exactly at the threshold; of the others, more
_NEIGHBOURS = 8  # texts that one text is compared with in a band, so that a million like texts stay linear
_BATCH = 2048  # texts whose words are in memory at once
_PAIRS = 8192  # compared at once
_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplier of the rolling hashes


class Leak(NamedTuple):
    """A held-out text that a training text gives away; both by their position."""

    train: int
    held_out: int
    kind: Literal["exact", "near", "13-gram"]


class _Texts(NamedTuple):
    """Hashes of texts; those of text `i` stand at `starts[i]` to `starts[i + 1]` of `words` and of `bags`."""

    whole: Keys
    words: Hashes  # in their order
    bags: Hashes  # each word with its number of occurrence, in no order: as a set it is the bag
    starts: Numbers
    lengths: Numbers  # in words


def near_duplicates(texts: Sequence[str], *, threshold: float = 0.8) -> list[int]:
    """A group number per text, from 0 in the order of the texts; those of one group are the same, exactly or nearly.

    Groups are chains: of three texts, the first and the last may be less alike than the threshold.

    Args:
        texts: Of any number and length; time grows about linearly with their words.
        threshold: Least Jaccard index of two bags of words; 1 asks for the same words, in whatever order.

    Raises:
        ValueError: the threshold is not over 0, or is over 1.
    """
    banding = _banding(threshold)
    read = _read(texts)
    # Distinct texts in the order of their hashes, so that the groups do not depend on the order of the texts.
    _, distinct, group = np.unique(read.whole, return_index=True, return_inverse=True)
    longer = np.flatnonzero(read.lengths[distinct] >= _SHORTEST)
    rows = distinct[longer]
    part = np.arange(len(rows))
    for keys in _band_keys(read, rows, banding):
        left, right = _same_bucket(keys)
        apart = part[left] != part[right]
        left, right = left[apart], right[apart]
        near = _jaccard(read, rows[left], read, rows[right]) >= threshold
        part = _merge(part, left[near], right[near])
    _, one_of = np.unique(part, return_index=True)
    head = np.arange(len(distinct))
    head[longer] = longer[one_of[part]]
    _, first, number = np.unique(head[group], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].tolist()


def leaks(train: Sequence[str], held_out: Sequence[str], *, threshold: float = 0.75) -> list[Leak]:
    """Which training texts give a held-out text away, by the strongest leak of each: exact, then near, then 13-gram.

    Compare fields as they are in the data, one a call, or whole items made of them: an instruction that a template adds
    to every item makes all items more alike, and one of 13 words is a 13-gram of them all.

    Args:
        train: Read in batches: memory does not grow with it.
        held_out: Indexed in memory.
        threshold: Least Jaccard index of a near leak; 0.75 finds every item with a tenth of its words changed.

    Returns:
        At most one leak a training text, in their order; of equally strong ones, that of the first held-out text.

    Raises:
        ValueError: the threshold is not over 0, or is over 1.
    """
    held = _HeldOut(held_out, threshold)
    kinds: tuple[Literal["exact", "near", "13-gram"], ...] = ("exact", "near", "13-gram")
    found: list[Leak] = []
    for start in range(0, len(train), _BATCH):
        read = _read(train[start : start + _BATCH])
        rows = np.flatnonzero(read.lengths)
        for kind, seek in zip(kinds, (held.exact, held.near, held.windows), strict=True):
            partner = seek(read, rows)
            hit = partner >= 0
            pairs = zip(rows[hit].tolist(), partner[hit].tolist(), strict=True)
            found += [Leak(start + row, at, kind) for row, at in pairs]
            rows = rows[~hit]
    return sorted(found)


class _HeldOut:
    """The held-out texts, indexed. Each way to seek gives a held-out position for each row of other texts, or -1."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self.threshold, self.banding = threshold, _banding(threshold)
        self.texts = _read(texts)
        self.whole, self.first = np.unique(self.texts.whole, return_index=True)
        self.rows = self.first[self.texts.lengths[self.first] >= _SHORTEST]
        self.bands: list[tuple[Keys, Numbers]] = []
        for keys in _band_keys(self.texts, self.rows, self.banding):
            order = np.argsort(keys, kind="stable")
            self.bands.append((keys[order], order))
        window, owner = _windows(self.texts, np.sort(self.first))
        self.window, at = np.unique(window, return_index=True)
        self.owner = owner[at]  # the first text that each window is in

    def exact(self, read: _Texts, rows: Numbers) -> Numbers:
        """The text with the same characters."""
        return _look_up(read.whole[rows], self.whole, self.first)

    def near(self, read: _Texts, rows: Numbers) -> Numbers:
        """The text that is most alike, if it is near."""
        longer = rows[read.lengths[rows] >= _SHORTEST]
        pairs = [np.empty(0, np.int64)]
        for keys, (known, order) in zip(_band_keys(read, longer, self.banding), self.bands, strict=True):
            bucket = known >> np.uint64(32)
            low, high = (np.searchsorted(bucket, keys >> np.uint64(32), side) for side in ("left", "right"))
            # Of a crowded bucket, those around the place where this text would stand: their next band is like its own.
            place = np.minimum(np.searchsorted(known, keys) - _NEIGHBOURS // 2, high - _NEIGHBOURS)
            place = np.maximum(place, low)
            for step in range(_NEIGHBOURS):
                inside = np.flatnonzero(place + step < high)
                pairs.append(longer[inside] << 32 | self.rows[order[place[inside] + step]])
        found = np.unique(np.concatenate(pairs))
        left, right = found >> 32, found & 0xFFFFFFFF
        alike = _jaccard(read, left, self.texts, right)
        best_last = np.lexsort((-right, alike))
        best_last = best_last[alike[best_last] >= self.threshold]
        partner = np.full(len(read.whole), -1)
        partner[left[best_last]] = right[best_last]
        return partner[rows]

    def windows(self, read: _Texts, rows: Numbers) -> Numbers:
        """The first text that shares 13 words in a row."""
        window, owner = _windows(read, rows)
        shared = _look_up(window, self.window, self.owner)
        first_last = np.argsort(-shared, kind="stable")
        first_last = first_last[shared[first_last] >= 0]
        partner = np.full(len(read.whole), -1)
        partner[owner[first_last]] = shared[first_last]
        return partner[rows]


@cache
def _marks() -> re.Pattern[str]:
    """Punctuation; symbols such as + and % stay."""
    marks = (chr(code) for code in range(0x10000) if unicodedata.category(chr(code)).startswith("P"))
    return re.compile(f"[{re.escape(''.join(marks))}]+")


def _words(text: str) -> list[str]:
    return _marks().sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()


def _digest(words: list[str], text: str) -> bytes:
    """64 bits of the characters without their spaces; but those between digits stay, for "1.5" is not "15"."""
    plain = _SPACE.sub("", " ".join(words)) or text.strip()
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _read(texts: Sequence[str]) -> _Texts:
    digests = bytearray()
    lengths, words, bags = [np.empty(0, np.int64)], [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        split = [_words(text) for text in batch]
        for found, text in zip(split, batch, strict=True):
            digests += _digest(found, text)
        lengths.append(np.array([len(found) for found in split], np.int64))
        words.append(_hashed(chain.from_iterable(split)))
        bags.append(_bags(_hashed(_stem(word) for found in split for word in found), lengths[-1]))
    lengths = np.concatenate(lengths)
    starts = np.cumsum(lengths) - lengths
    return _Texts(np.frombuffer(digests, np.uint64), np.concatenate(words), np.concatenate(bags), starts, lengths)


def _stem(word: str) -> str:
    return word[:2] if "가" <= word[0] <= "힣" else word


def _hashed(words: Iterable[str]) -> Hashes:
    return _mixed(np.fromiter((crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint64))


def _mixed(hashes: Keys) -> Hashes:
    """32 well-mixed bits, by the finaliser of SplitMix64 (Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _bags(words: Hashes, lengths: Numbers) -> Hashes:
    """Each word hashed with its number of occurrence in its text, so that a set of them is a bag of words."""
    text = np.repeat(np.arange(len(lengths)), lengths)
    words = words[np.lexsort((words, text))]
    position = np.arange(len(words))
    occurrence = position - np.maximum.accumulate(np.where(_changes(words) | _changes(text), position, 0))
    return _mixed(words + occurrence.astype(np.uint64) * _ODD)


def _changes(values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """True where a value differs from the one before it, and at the first."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _ragged(starts: Numbers, counts: Numbers) -> Numbers:
    """The positions `starts[i]` to `starts[i] + counts[i]` of each i, one after the other."""
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def _look_up(keys: Keys, known: Keys, values: Numbers) -> Numbers:
    """The value of each key among the sorted `known`, or -1."""
    if not len(known):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], -1)


def _windows(texts: _Texts, rows: Numbers) -> tuple[Keys, Numbers]:
    """A hash of every 13 consecutive words of these rows, and the row that each is of."""
    counts = np.maximum(0, texts.lengths[rows] - (_WINDOW - 1))
    place = _ragged(texts.starts[rows], counts)
    window = np.zeros(len(place), np.uint64)
    for step in range(_WINDOW):
        window = window * _ODD + texts.words[place + step]
    return window, np.repeat(rows, counts)


def _banding(threshold: float) -> tuple[int, int]:
    """Bands and their rows: the most rows, so the fewest chance pairs, that find a pair at the threshold."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be over 0 and at most 1 (got {threshold})")
    for rows in range(_PERMUTATIONS, 1, -1):
        bands = _PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return _PERMUTATIONS, 1


def _band_keys(texts: _Texts, rows: Numbers, banding: tuple[int, int]) -> Iterator[Keys]:
    """For each band, a key per row: 32 bits of this band, its bucket, then 32 bits of the next, to sort the bucket."""
    from datasketch import MinHash

    bands, depth = banding
    made = np.empty((bands, len(rows)), np.uint32)
    sketch = MinHash(num_perm=bands * depth, seed=1, hashfunc=int)
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        signatures = np.empty((len(some), bands, depth), np.uint64)
        for row, (first, length) in enumerate(zip(texts.starts[some], texts.lengths[some], strict=True)):
            sketch.clear()
            sketch.update_batch(texts.bags[first : first + length].tolist())
            signatures[row] = sketch.hashvalues.reshape(bands, depth)
        key = np.zeros((len(some), bands), np.uint64)
        for column in range(depth):
            key = key * _ODD + signatures[:, :, column]
        made[:, start : start + _BATCH] = _mixed(key).T
    for band in range(bands):
        yield made[band].astype(np.uint64) << np.uint64(32) | made[(band + 1) % bands]


def _same_bucket(keys: Keys) -> tuple[Numbers, Numbers]:
    """Pairs of one bucket: each text with the next ones in it and with its first, not each with each."""
    order = np.argsort(keys, kind="stable")
    bucket = keys[order] >> np.uint64(32)
    position = np.arange(len(keys))
    head = np.maximum.accumulate(np.where(_changes(bucket), position, 0))
    left, right = [head], [position]
    for step in range(1, _NEIGHBOURS):
        inside = position[step:][position[step:] - head[step:] > step]
        left.append(inside - step)
        right.append(inside)
    pairs = np.concatenate(left), np.concatenate(right)
    apart = pairs[0] != pairs[1]
    return order[pairs[0][apart]], order[pairs[1][apart]]


def _jaccard(left: _Texts, left_rows: Numbers, right: _Texts, right_rows: Numbers) -> NDArray[np.float64]:
    """The Jaccard index of the bags of each pair; both rows of a pair have words."""
    alike = np.empty(len(left_rows))
    for start in range(0, len(left_rows), _PAIRS):
        sides = (left, left_rows[start : start + _PAIRS]), (right, right_rows[start : start + _PAIRS])
        both: list[Keys] = []
        for texts, rows in sides:
            pair = np.repeat(np.arange(len(rows), dtype=np.uint64), texts.lengths[rows])
            both.append(pair << np.uint64(32) | texts.bags[_ragged(texts.starts[rows], texts.lengths[rows])])
        words = np.sort(np.concatenate(both))
        shared = words[1:][words[1:] == words[:-1]] >> np.uint64(32)
        count = np.bincount(shared.astype(np.int64), minlength=len(sides[0][1]))
        lengths = sum(texts.lengths[rows] for texts, rows in sides)
        alike[start : start + _PAIRS] = count / (lengths - count)
    return alike


def _merge(part: Numbers, left: Numbers, right: Numbers) -> Numbers:
    """The parts with those of each pair made one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(left):
        return part
    links = coo_array((np.ones(len(left)), (part[left], part[right])), shape=(len(part), len(part)))
    return connected_components(links, directed=False)[1].astype(np.int64)[part]
