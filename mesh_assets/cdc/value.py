"""Compiled kernels from PostgreSQL's text of values to Arrow buffers.

Every kernel takes cells (``at``: where a value's text starts in ``b``; ``length``: its bytes,
negative for null), fills ``out``, sets the validity bits of what it could read, and marks in
``bad`` each value that is not null and does not fit. It returns how many are null (bad ones
included) and how many are bad. No input makes a kernel read or write outside of its arrays,
provided that the cells lie within ``b``.

Source: PostgreSQL's output functions under the settings named in :mod:`mesh_assets.cdc.type`.
"""

from __future__ import annotations

import numpy as np

from mesh_assets.cdc.kernel import Bytes, Ints, Longs, compiled, signed, unsigned

_YEAR_ONE = -62_135_596_800_000_000  # 0001-01-01 in microseconds since 1970.
_YEAR_10000 = 253_402_300_800_000_000


@compiled
def integers(
    b: Bytes, at: Longs, length: Ints, low: int, high: int, out: Longs, bits: Bytes, bad: Bytes
) -> tuple[int, int]:
    """Decimal integers from ``low`` to ``high``."""
    null_count = 0
    bad_count = 0
    for i in range(length.shape[0]):
        out[i] = 0
        if length[i] < 0:
            null_count += 1
            continue
        q = at[i]
        end = q + length[i]
        negative = q < end and b[q] == 45
        if negative:
            q += 1
        # Summed up below zero, where there is room for -2**63; 19 digits cannot pass twice that.
        value = signed(0)
        good = q < end and end - q <= 19
        if good:
            for j in range(q, end):
                digit = signed(b[j]) - 48
                if digit < 0 or digit > 9:
                    good = False
                    break
                value = value * 10 - digit
            if value > 0:
                good = False
            if not negative:
                if value == signed(-9223372036854775808):
                    good = False
                value = -value
        if good and value >= low and value <= high:
            out[i] = value
            bits[i >> 3] |= np.uint8(1 << (i & 7))
        else:
            null_count += 1
            bad_count += 1
            bad[i] = 1
    return null_count, bad_count


@compiled
def booleans(b: Bytes, at: Longs, length: Ints, out: Bytes, bits: Bytes, bad: Bytes) -> tuple[int, int]:
    """``t`` and ``f``; ``out`` is a bit map."""
    null_count = 0
    bad_count = 0
    for i in range(length.shape[0]):
        if length[i] < 0:
            null_count += 1
        elif length[i] == 1 and (b[at[i]] == 116 or b[at[i]] == 102):
            bits[i >> 3] |= np.uint8(1 << (i & 7))
            if b[at[i]] == 116:
                out[i >> 3] |= np.uint8(1 << (i & 7))
        else:
            null_count += 1
            bad_count += 1
            bad[i] = 1
    return null_count, bad_count


@compiled
def _number(b: Bytes, q: int, digits: int) -> int:
    """The number written in so many digits at ``q``; something below zero if one is no digit."""
    value = signed(0)
    for j in range(q, q + digits):
        digit = signed(b[j]) - 48
        if digit < 0 or digit > 9:
            return -1_000_000
        value = value * 10 + digit
    return value


@compiled
def _day(b: Bytes, q: int) -> int:
    """Days since 1970 of ``YYYY-MM-DD`` at ``q``, or -2**62.

    Counts in eras of 400 years that begin in March (Howard Hinnant, "chrono-compatible
    low-level date algorithms").
    """
    wrong = -(1 << 62)
    year = _number(b, q, 4)
    month = _number(b, q + 5, 2)
    day = _number(b, q + 8, 2)
    if b[q + 4] != 45 or b[q + 7] != 45 or year < 1 or month < 1 or month > 12 or day < 1:
        return wrong
    leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    if month == 2:
        last = 29 if leap else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        last = 30
    else:
        last = 31
    if day > last:
        return wrong
    if month <= 2:
        year -= 1
        month += 9
    else:
        month -= 3
    era = year // 400
    of_era = year - era * 400
    day_of_year = (153 * month + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + day_of_year - 719468


@compiled
def dates(b: Bytes, at: Longs, length: Ints, out: Ints, bits: Bytes, bad: Bytes) -> tuple[int, int]:
    """ISO dates of the years 0001 to 9999, as days since 1970."""
    null_count = 0
    bad_count = 0
    for i in range(length.shape[0]):
        out[i] = 0
        if length[i] < 0:
            null_count += 1
            continue
        day = signed(-(1 << 62))
        if length[i] == 10:
            day = _day(b, at[i])
        if day > -(1 << 62):
            out[i] = day
            bits[i >> 3] |= np.uint8(1 << (i & 7))
        else:
            null_count += 1
            bad_count += 1
            bad[i] = 1
    return null_count, bad_count


@compiled
def _instant(b: Bytes, q: int, end: int) -> int:
    """Microseconds since 1970 of ``YYYY-MM-DD HH:MM:SS[.ffffff][+HH[:MM[:SS]]]``, or -2**62."""
    wrong = -(1 << 62)
    if end - q < 19:
        return wrong
    day = _day(b, q)
    hour = _number(b, q + 11, 2)
    minute = _number(b, q + 14, 2)
    second = _number(b, q + 17, 2)
    if day == wrong or b[q + 10] != 32 or b[q + 13] != 58 or b[q + 16] != 58:
        return wrong
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return wrong
    instant = (day * 86400 + hour * 3600 + minute * 60 + second) * 1_000_000
    q += 19
    if q < end and b[q] == 46:
        q += 1
        unit = 100_000
        start = q
        while q < end and b[q] >= 48 and b[q] <= 57:
            instant += (signed(b[q]) - 48) * unit
            unit //= 10
            q += 1
        if q == start or q - start > 6:
            return wrong
    if q == end:
        return instant
    sign = 0
    if b[q] == 43:
        sign = -1
    elif b[q] == 45:
        sign = 1
    offset = signed(0)
    unit = 3600
    if sign == 0 or (end - q) % 3 != 0 or end - q > 9:
        return wrong
    while q < end:
        part = _number(b, q + 1, 2)
        if part < 0 or part > 59 or (unit != 3600 and b[q] != 58):
            return wrong
        offset += part * unit
        unit //= 60
        q += 3
    return instant + sign * offset * 1_000_000


@compiled
def instants(b: Bytes, at: Longs, length: Ints, out: Longs, bits: Bytes, bad: Bytes) -> tuple[int, int]:
    """ISO timestamps, with or without an offset, of the years 0001 to 9999."""
    null_count = 0
    bad_count = 0
    for i in range(length.shape[0]):
        out[i] = 0
        if length[i] < 0:
            null_count += 1
            continue
        instant = _instant(b, at[i], at[i] + length[i])
        if instant >= _YEAR_ONE and instant < _YEAR_10000:
            out[i] = instant
            bits[i >> 3] |= np.uint8(1 << (i & 7))
        else:
            null_count += 1
            bad_count += 1
            bad[i] = 1
    return null_count, bad_count


@compiled
def decimals(
    b: Bytes, at: Longs, length: Ints, precision: int, scale: int, out: Longs, bits: Bytes, bad: Bytes
) -> tuple[int, int]:
    """Decimal numbers as unscaled 128-bit integers: pairs of low and high word in ``out``."""
    null_count = 0
    bad_count = 0
    mask = unsigned(0xFFFFFFFF)
    half = unsigned(32)
    for i in range(length.shape[0]):
        out[2 * i] = 0
        out[2 * i + 1] = 0
        if length[i] < 0:
            null_count += 1
            continue
        q = at[i]
        end = q + length[i]
        negative = q < end and b[q] == 45
        if negative:
            q += 1
        w0 = unsigned(0)  # Four words of 32 bits, the lowest first.
        w1 = unsigned(0)
        w2 = unsigned(0)
        w3 = unsigned(0)
        chunk = signed(0)
        chunk_unit = signed(1)
        digits = 0  # Significant ones, the zeros that fill the scale included.
        fraction = -1
        seen = 0
        good = True
        while True:
            if q < end:
                c = signed(b[q])
                q += 1
                if c == 46 and fraction < 0:
                    fraction = 0
                    continue
                if c < 48 or c > 57:
                    good = False
                    break
                digit = c - 48
                seen += 1
                if fraction >= 0:
                    fraction += 1
                    if fraction > scale:
                        good = False
                        break
            elif max(fraction, 0) < scale:
                fraction = max(fraction, 0) + 1
                digit = signed(0)
            else:
                break
            if digits > 0 or digit > 0:
                digits += 1
            chunk = chunk * 10 + digit
            chunk_unit *= 10
            if digits > precision:
                good = False
                break
            if chunk_unit == 1_000_000_000:
                if digits <= 9:
                    w0 = unsigned(chunk)
                else:
                    unit = unsigned(1_000_000_000)
                    carry = w0 * unit + unsigned(chunk)
                    w0 = carry & mask
                    carry = w1 * unit + (carry >> half)
                    w1 = carry & mask
                    carry = w2 * unit + (carry >> half)
                    w2 = carry & mask
                    w3 = w3 * unit + (carry >> half)
                chunk = signed(0)
                chunk_unit = signed(1)
        if not good or seen == 0:
            null_count += 1
            bad_count += 1
            bad[i] = 1
            continue
        unit = unsigned(chunk_unit)
        carry = w0 * unit + unsigned(chunk)
        w0 = carry & mask
        carry = w1 * unit + (carry >> half)
        w1 = carry & mask
        carry = w2 * unit + (carry >> half)
        w2 = carry & mask
        w3 = w3 * unit + (carry >> half)
        low = signed(w0 | (w1 << half))
        high = signed(w2 | (w3 << half))
        if negative:
            low = -low
            high = ~high
            if low == 0:
                high += 1
        out[2 * i] = low
        out[2 * i + 1] = high
        bits[i >> 3] |= np.uint8(1 << (i & 7))
    return null_count, bad_count


@compiled
def text_size(length: Ints) -> int:
    """Bytes of all cells that are not null."""
    size = 0
    for i in range(length.shape[0]):
        if length[i] > 0:
            size += length[i]
    return size


@compiled
def texts(b: Bytes, at: Longs, length: Ints, offsets: Ints, data: Bytes, bits: Bytes) -> tuple[int, int]:
    """The cells' bytes one after another. Returns nulls, and a value above 127 if a byte is no ASCII."""
    null_count = 0
    union = np.uint8(0)
    o = 0
    for i in range(length.shape[0]):
        offsets[i] = o
        n = length[i]
        if n < 0:
            null_count += 1
            continue
        bits[i >> 3] |= np.uint8(1 << (i & 7))
        # Unsigned places spare the test for places counted from the end.
        q = unsigned(at[i])
        w = unsigned(o)
        for j in range(unsigned(n)):
            c = b[q + j]
            union |= c
            data[w + j] = c
        o += n
    offsets[length.shape[0]] = o
    return null_count, signed(union)


@compiled
def _nibble(c: int) -> int:
    if c >= 48 and c <= 57:
        return c - 48
    if c >= 97 and c <= 102:
        return c - 87
    return -1


@compiled
def binaries(
    b: Bytes, at: Longs, length: Ints, offsets: Ints, data: Bytes, bits: Bytes, bad: Bytes
) -> tuple[int, int]:
    r"""``\x`` and hexadecimal digits. ``data`` has room for half of the text."""
    null_count = 0
    bad_count = 0
    o = 0
    for i in range(length.shape[0]):
        offsets[i] = o
        n = length[i]
        if n < 0:
            null_count += 1
            continue
        q = at[i]
        good = n >= 2 and n % 2 == 0 and b[q] == 92 and b[q + 1] == 120
        k = o
        if good:
            for j in range(q + 2, q + n, 2):
                high = _nibble(signed(b[j]))
                low = _nibble(signed(b[j + 1]))
                if high < 0 or low < 0:
                    good = False
                    break
                data[k] = np.uint8(high * 16 + low)
                k += 1
        if good:
            bits[i >> 3] |= np.uint8(1 << (i & 7))
            o = k
        else:
            null_count += 1
            bad_count += 1
            bad[i] = 1
    offsets[length.shape[0]] = o
    return null_count, bad_count


@compiled
def element_room(b: Bytes, at: Longs, length: Ints, delimiter: int) -> int:
    """At most so many elements stand in the cells' array texts."""
    room = 0
    for i in range(length.shape[0]):
        n = length[i]
        if n <= 2:
            continue
        room += 1
        for q in range(at[i], at[i] + n):
            if b[q] == delimiter:
                room += 1
    return room


@compiled
def elements(
    b: Bytes,
    at: Longs,
    length: Ints,
    delimiter: int,
    offsets: Ints,
    element_at: Longs,
    element_length: Ints,
    scratch: Bytes,
    bits: Bytes,
    bad: Bytes,
) -> tuple[int, int, int]:
    """Split one-dimensional array texts into element cells, whose unescaped text goes to ``scratch``.

    Also returns how many elements there are. Bad is what has several dimensions, bounds of
    its own, or is no array text.
    """
    null_count = 0
    bad_count = 0
    e = 0
    o = 0
    for i in range(length.shape[0]):
        offsets[i] = e
        if length[i] < 0:
            null_count += 1
            continue
        q = at[i]
        end = q + length[i] - 1  # Of what stands between the braces.
        good = length[i] >= 2 and b[q] == 123 and b[end] == 125
        k = e
        w = o
        q += 1
        while good and q <= end and length[i] > 2:
            start = w
            quoted = q < end and b[q] == 34
            if quoted:
                q += 1
                while q < end and b[q] != 34:
                    if b[q] == 92:
                        q += 1
                        if q == end:
                            break
                    scratch[w] = b[q]
                    w += 1
                    q += 1
                if q >= end:
                    good = False
                    break
                q += 1
            else:
                while q < end and b[q] != delimiter:
                    c = b[q]
                    if c == 123 or c == 125 or c == 34 or c == 92:
                        good = False
                        break
                    scratch[w] = c
                    w += 1
                    q += 1
                if w == start:
                    good = False
            if not good or (q < end and b[q] != delimiter):
                good = False
                break
            element_at[k] = start
            element_length[k] = w - start
            if (
                not quoted
                and w - start == 4
                and scratch[start] == 78
                and scratch[start + 1] == 85
                and scratch[start + 2] == 76
                and scratch[start + 3] == 76
            ):
                element_length[k] = -1
            k += 1
            q += 1
        if good:
            bits[i >> 3] |= np.uint8(1 << (i & 7))
            e = k
            o = w
        else:
            null_count += 1
            bad_count += 1
            bad[i] = 1
    offsets[length.shape[0]] = e
    return null_count, bad_count, e
