"""Errors that bytes from outside can cause (ProtocolError), and errors that the user can mend (UserError).

A peer's mistake is a ProtocolError: the receiver answers or logs it and keeps running. A mistake of our own code is a
ValueError or a TypeError, and a bug.

Every rule of PROTOCOL.md that bytes can break has one class here; `code` is its name in the specification, in logs and
in the golden vectors. The first line of each docstring says what the error means, the rest what to do about it; the
documentation's page of errors is generated from both. An error's message says what was found and what was expected.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Bytes that break a rule of PROTOCOL.md; the receiver keeps running."""

    code = "protocol"


class TruncatedError(ProtocolError):
    """The bytes end before the message does.

    A frame or a file was cut short. Copy a file again. A message needs nothing: its sender repeats it until it gets a
    receipt.
    """

    code = "truncated"


class TrailingBytesError(ProtocolError):
    """More bytes follow after the end of the message.

    Two messages may have been joined, or something was appended to a file. Send or copy exactly the encoded bytes.
    """

    code = "trailing-bytes"


class MagicError(ProtocolError):
    """The bytes are not a Seedmask frame.

    Another program publishes on this topic, or the file is of another kind. Check the topic and the path.
    """

    code = "magic"


class VersionError(ProtocolError):
    """The frame has a protocol version that this program does not support.

    Install the same version of Seedmask on the devices and on the server.
    """

    code = "version"


class ChecksumError(ProtocolError):
    """The CRC-32 of a frame, or the digest of a transfer, does not match its content.

    The bytes changed in transit. A device fetches a damaged transfer again by itself. If the error comes back, look for
    a proxy or a disk that alters bytes.
    """

    code = "checksum"


class KindError(ProtocolError):
    """The message kind, codec id, phase or status is not listed in PROTOCOL.md, or not expected on this topic.

    The sender is newer than the receiver, or it published on the wrong topic. Update the receiver or correct the topic.
    """

    code = "kind"


class FieldError(ProtocolError):
    """A field holds a value outside its range, or fields contradict each other.

    The message names the field, its value and the range. If your own client encoded it, compare its bytes with the
    golden vectors.
    """

    code = "field"


class CodecError(ProtocolError):
    """The payload is one that the codec's encoder cannot write.

    The mask was coded under other probabilities, or its encoder has a bug. Test your encoder with the golden vectors.
    The aggregator has refused this update and continues the round without it.
    """

    code = "codec"


class ThetaMismatchError(ProtocolError):
    """The payload was coded under other global probabilities than those that the receiver holds.

    Sender and receiver are in different rounds or jobs. A device fetches the current probabilities by itself.
    """

    code = "theta-mismatch"


class LimitError(ProtocolError):
    """The message is well formed, but its size is not one that the receiver accepts.

    The message of the error names the limit. Raise it only if you trust the sender.
    """

    code = "limit"


class SpecError(ProtocolError):
    """The ModelSpec describes no valid network, is not in canonical form, or does not match its digest.

    Export the model again. If your own tool wrote the spec, compare it with section 4 of PROTOCOL.md.
    """

    code = "spec"


class BundleError(ProtocolError):
    """The bundle or model file cannot be opened safely.

    Copy the file again and compare its SHA-256. If an older version of Seedmask wrote it, export or finalize it again.
    """

    code = "bundle"


class UserError(Exception):
    """Mistake that the user can correct: an argument, a file or a setting. Shown without a traceback; exit status 2."""


class MissingPackageError(UserError):
    """Package that has to be installed first; exit status 3."""
