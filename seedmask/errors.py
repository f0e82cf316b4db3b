"""Two kinds of wrong: theirs (a ProtocolError, answered and survived) and ours (ValueError, TypeError: a bug).

Every rule of PROTOCOL.md that bytes can break has one class here, and `code` is its name on paper, in logs and in
the golden vectors. The text of an error says what was found and what was possible.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Bytes that break a rule of PROTOCOL.md. Never fatal for the receiver."""

    code = "protocol"


class TruncatedError(ProtocolError):
    """The bytes end before the message does."""

    code = "truncated"


class TrailingBytesError(ProtocolError):
    """The message ends before the bytes do."""

    code = "trailing-bytes"


class MagicError(ProtocolError):
    """Not one of our frames at all."""

    code = "magic"


class VersionError(ProtocolError):
    """One of our frames, of a protocol version that this program does not speak."""

    code = "version"


class ChecksumError(ProtocolError):
    """CRC-32 of a frame, or digest of a transfer, does not match its content."""

    code = "checksum"


class KindError(ProtocolError):
    """A message kind, codec id or status number that PROTOCOL.md does not list."""

    code = "kind"


class FieldError(ProtocolError):
    """A field holds a value outside its range, or fields contradict each other."""

    code = "field"


class CodecError(ProtocolError):
    """A codec's payload is not one that its encoder could have written."""

    code = "codec"


class ThetaMismatchError(ProtocolError):
    """A mask coded under other global probabilities than the receiver holds."""

    code = "theta-mismatch"


class LimitError(ProtocolError):
    """Well formed, but larger than the receiver agreed to hold."""

    code = "limit"


class SpecError(ProtocolError):
    """A ModelSpec that describes no network, or not the one its digest names."""

    code = "spec"


class BundleError(ProtocolError):
    """A bundle or model file that cannot be opened safely."""

    code = "bundle"


class UserError(Exception):
    """Something the person at the keyboard can mend; shown without a traceback, exit status 2."""


class MissingPackageError(UserError):
    """A package that has to be installed first; exit status 3."""
