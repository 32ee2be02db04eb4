"""Many numbers out of text at once: eight digits in one 64-bit word, all lines together.

Digits are loaded as the little-endian word that ends where they end, so that the last digit is its top byte; what
stands before them is replaced by zeros, and a number of any width is one or two or three such words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

#: Bytes that must stand before the first and behind the last one that is looked at.
GUARD_BYTES = 40

_ZEROS, _HIGH, _ONES = (
    np.uint64(0x3030303030303030),
    np.uint64(0x8080808080808080),
    np.uint64(0x0101010101010101),
)
_LOW_7, _NIBBLES = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x0F0F0F0F0F0F0F0F)


def words_of(raw: Bytes) -> Words:
    """A view of every byte as the beginning of a little-endian word. Shape: 7 fewer than bytes."""
    return np.ndarray((len(raw) - 7,), np.dtype("<u8"), raw, 0, (1,))


#: Masks of the last 0 to 8 characters of a word.
_LAST = np.array([0, *(((1 << 8 * count) - 1) << (64 - 8 * count) for count in range(1, 9))], np.uint64)


def keep_last(words: Words, count: Places, filler: np.uint64) -> Words:
    """The last `count` characters of each word (all of them from 8 on); those before them become `filler`'s."""
    mask = _LAST[np.minimum(np.maximum(count, 0), 8)]
    kept: Words = words & mask
    if filler:
        kept |= filler & ~mask
    return kept


def _decimal_word(word: Words) -> tuple[Words, Flags]:
    digits = word ^ _ZEROS
    good = ((digits | (digits + np.uint64(0x0606060606060606))) & np.uint64(0xF0F0F0F0F0F0F0F0)) == 0
    # Neighbours are joined: eight digits to four pairs, two fours, one number.
    pairs = (digits * np.uint64(2561)) >> np.uint64(8) & np.uint64(0x00FF00FF00FF00FF)
    fours = (pairs * np.uint64(6553601)) >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF)
    return (fours * np.uint64(42949672960001)) >> np.uint64(32), good


def _hex_word(word: Words) -> tuple[Words, Flags]:
    lower = word | np.uint64(0x2020202020202020)
    digit = (lower + np.uint64(0x5050505050505050)) & ~(lower + np.uint64(0x4646464646464646))
    letter = (lower + np.uint64(0x1F1F1F1F1F1F1F1F)) & ~(lower + np.uint64(0x1919191919191919))
    good = (((digit | letter) & _HIGH) == _HIGH) & ((word & _HIGH) == 0)
    value = (word & _NIBBLES) + ((word >> np.uint64(6)) & _ONES) * np.uint64(9)
    value = ((value << np.uint64(4)) | (value >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    value = ((value << np.uint64(8)) | (value >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return ((value << np.uint64(16)) | (value >> np.uint64(32))) & np.uint64(0xFFFFFFFF), good


def decimals(words: Words, start: Places, end: Places) -> tuple[Words, Flags]:
    """Unsigned decimal numbers, and which of them are any (1 to 20 digits, less than 2**64 in 19 digits or fewer)."""
    length = end - start
    value, good = _decimal_word(keep_last(words[end - 8], length, _ZEROS))
    good &= (length > 0) & (length <= 20)
    for done, scale in ((8, 10**8), (16, 10**16)):
        more = np.flatnonzero(length > done)
        if not len(more):
            break
        part, fine = _decimal_word(keep_last(words[end[more] - 8 - done], length[more] - done, _ZEROS))
        value[more] += part * np.uint64(scale)
        good[more] &= fine
    return value, good


def hexadecimals(words: Words, start: Places, end: Places) -> tuple[Words, Flags]:
    """Hexadecimal numbers without their 0x, and which of them are any (1 to 16 digits)."""
    length = end - start
    value, good = _hex_word(keep_last(words[end - 8], length, _ZEROS))
    good &= (length > 0) & (length <= 16)
    more = np.flatnonzero(length > 8)
    if len(more):
        part, fine = _hex_word(keep_last(words[end[more] - 16], length[more] - 8, _ZEROS))
        value[more] |= part << np.uint64(32)
        good[more] &= fine
    return value, good


def integers(raw: Bytes, words: Words, start: Places, end: Places) -> tuple[Words, Flags]:
    """Numbers as C prints them: decimal with or without a sign, or hexadecimal behind 0x; negative ones as two's complement."""
    negative = raw[start] == ord("-")
    begin = start + negative
    is_hex = (raw[begin] == ord("0")) & ((raw[begin + 1] | 0x20) == ord("x")) & (end - begin > 2)
    if is_hex.all():
        value, good = hexadecimals(words, begin + 2, end)
    elif not is_hex.any():
        value, good = decimals(words, begin, end)
    else:
        value, good = np.zeros(len(start), np.uint64), np.zeros(len(start), np.bool_)
        for which, parse, skip in ((is_hex, hexadecimals, 2), (~is_hex, decimals, 0)):
            value[which], good[which] = parse(words, begin[which] + skip, end[which])
    if negative.any():
        value[negative] = (~value[negative]) + np.uint64(1)
    return value, good


def last_of(word: Words, character: int) -> Places:
    """The place (0 to 7) of the last such character in each word; -1 where there is none."""
    other = word ^ (_ONES * np.uint64(character))
    found = ~(((other & _LOW_7) + _LOW_7) | other | _LOW_7)
    # One bit per byte, at its top: the exponent tells the highest; rounding to 53 bits never carries, for the bits
    # are eight apart.
    exponent = np.frexp(found.astype(np.float64))[1].astype(np.int64)
    return (exponent + 7) // 8 - 1
