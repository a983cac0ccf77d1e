"""Protocol Buffers on the wire: the few fields that a tracker's file is read for.

Field numbers never change their meaning, which the Python modules that trackers generate from them
do: reading the numbers needs none of these modules, nor seconds to import them.
"""

import struct
from collections.abc import Iterator

Field = tuple[int, int | bytes]


def read_fields(data: bytes) -> Iterator[Field]:
    """Return a message's fields as numbers and values, in order.

    A value is an int (a varint, unsigned), or bytes: 4 or 8 of a fixed number, else those of a
    text, a message or a packed list.

    Raises
    ------
    ValueError
        If the bytes are no message.
    """
    place, end = 0, len(data)
    while place < end:
        tag = data[place]
        place += 1
        if tag & 0x80:
            tag, place = _read_varint(data, place - 1)
        kind = tag & 7
        if kind == 0:
            value, place = _read_varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _read_varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"expected a message, found a field of kind {kind}")
        if size > end - place:
            raise ValueError("expected a message, found one that ends too early")
        yield tag >> 3, data[place : place + size]
        place += size


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """Return a varint and the place behind it."""
    value = shift = 0
    while shift < 70:
        if place >= len(data):
            raise ValueError("expected a message, found one that ends too early")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("expected a message, found a number that does not end")


def as_bytes(value: int | bytes) -> bytes:
    """Return the value of a field that is a text or a message.

    Raises
    ------
    ValueError
        If it is a number.
    """
    if isinstance(value, int):
        raise ValueError("expected text in a message, found a number")
    return value


def as_text(value: int | bytes) -> str:
    """Return the value of a field that is text; what is no UTF-8 is replaced."""
    return as_bytes(value).decode("utf-8", "replace")


def as_int(value: int | bytes) -> int:
    """Return the value of a field that is a signed number of 64 bits.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not isinstance(value, int):
        raise ValueError("expected a number in a message, found bytes")
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def as_float(value: int | bytes) -> float:
    """Return the value of a field that is a float of 32 or 64 bits.

    Raises
    ------
    ValueError
        If it is none.
    """
    raw = as_bytes(value)
    if len(raw) not in (4, 8):
        raise ValueError(f"expected 4 or 8 bytes of a number in a message, found {len(raw)}")
    found: float = struct.unpack("<f" if len(raw) == 4 else "<d", raw)[0]
    return found
