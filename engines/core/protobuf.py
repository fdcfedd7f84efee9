"""Reading and writing of protobuf's wire format, for ONNX files on machines without the package onnx.

Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

Bytes = bytes | memoryview | mmap.mmap

VARINT, MESSAGE = 0, 2
"""Wire types: an integer; a text, bytes or a message, with its length before it."""

_FIXED_BYTES = {1: 8, 5: 4}
_LONGEST_VARINT = 10


class Field(NamedTuple):
    """A field of a message: its number, its wire type, and its integer or the slice of its bytes in the message."""

    number: int
    kind: int
    value: int | slice


def fields(message: Bytes) -> Iterator[Field]:
    """Yield the fields of a message in order. The bytes of texts and messages inside are not read.

    Raises:
        ValueError: the message is cut short, or is no message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = (message[at], at + 1) if message[at] < 0x80 else _read_varint(message, at)  # most have one byte
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _read_varint(message, at)
            yield Field(number, kind, value)
            continue
        if kind == MESSAGE:
            size, at = (message[at], at + 1) if at < end and message[at] < 0x80 else _read_varint(message, at)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise ValueError(f"field {number} has the wire type {kind}, expected 0, 1, 2 or 5")
        if at + size > end:
            raise ValueError(f"field {number} ends at byte {at + size} of {end}")
        yield Field(number, kind, slice(at, at + size))
        at += size


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the bytes of the fields `number` of a message: texts, bytes or messages.

    Raises:
        ValueError: the message is cut short, or is no message.
    """
    for field in fields(message):
        if field.number == number and isinstance(field.value, slice):
            yield message[field.value]


def integer_field(number: int, value: int) -> bytes:
    """Return the bytes of a field that holds an integer, 0 or more."""
    return _varint(number << 3 | VARINT) + _varint(value)


def message_field(number: int, payload: bytes) -> bytes:
    """Return the bytes of a field that holds a message, a text or bytes."""
    return _varint(number << 3 | MESSAGE) + _varint(len(payload)) + payload


def _read_varint(data: Bytes, at: int) -> tuple[int, int]:
    """Return the integer at `at`, which has seven bits a byte, and the position of its end."""
    value = 0
    for index, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError(f"no integer at byte {at} of {len(data)}")


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
