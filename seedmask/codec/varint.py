"""Varints, numbers of variable length: seven bits a byte, least significant first (LEB128).  PROTOCOL 5.

The high bit of a byte is set if another byte follows. Only the shortest form is valid.
"""

from __future__ import annotations

from seedmask.errors import CodecError


def put(value: int) -> bytes:
    """Return `value`, 0 .. 2**32 - 1, in 1 to 5 bytes."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def get(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, index of the byte after it) of the number at index `at`. Raises CodecError."""
    value = 0
    for i in range(5):
        if at + i >= len(data):
            raise CodecError(f"a number at byte {at} has no end")
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            if (i and not byte) or value >> 32:
                raise CodecError(f"the number at byte {at} is not in its shortest form, or above 32 bits")
            return value, at + i + 1
    raise CodecError(f"the number at byte {at} is longer than 5 bytes")
