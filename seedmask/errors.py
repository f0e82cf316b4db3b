"""Two kinds of wrong: theirs (a ProtocolError, answered and survived) and ours (ValueError, TypeError: a bug).

Every rule of PROTOCOL.md that bytes can break has one class here, and `code` is its name on paper, in logs and in
the golden vectors. A docstring's first line is the meaning, the rest what to do about it: the documentation's page of
errors is made of them. The text of an error says what was found and what was possible.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Bytes that break a rule of PROTOCOL.md. Never fatal for the receiver."""

    code = "protocol"


class TruncatedError(ProtocolError):
    """The bytes end before the message does.

    A frame or file was cut short. For a file, copy it again. For a message, nothing: the sender repeats it until it
    gets a receipt.
    """

    code = "truncated"


class TrailingBytesError(ProtocolError):
    """The message ends before the bytes do.

    Two messages may have been joined, or the file was appended to. Send or copy exactly what was encoded.
    """

    code = "trailing-bytes"


class MagicError(ProtocolError):
    """The bytes are not a Seedmask frame.

    Another program publishes on this topic, or the file is not what its name says. Check the topic and the path.
    """

    code = "magic"


class VersionError(ProtocolError):
    """The frame has a protocol version that this program does not speak.

    Install the same version of Seedmask on the device and on the server.
    """

    code = "version"


class ChecksumError(ProtocolError):
    """The CRC-32 of a frame, or the digest of a transfer, does not match its content.

    The bytes changed on their way. A device fetches a damaged transfer again by itself. If it keeps happening, look for
    a proxy or a disk that alters bytes.
    """

    code = "checksum"


class KindError(ProtocolError):
    """The message kind, codec id, phase or status is not listed in PROTOCOL.md, or not expected here.

    The sender is newer than the receiver, or published on the wrong topic. Update the receiver.
    """

    code = "kind"


class FieldError(ProtocolError):
    """A field holds a value outside its range, or fields contradict each other.

    The text names the field, its value and the range. If your own client wrote it, compare it with the golden vectors.
    """

    code = "field"


class CodecError(ProtocolError):
    """The payload is not one that the codec's encoder could have written.

    The mask was coded under other probabilities, or by a faulty encoder. Check your encoder against the golden vectors;
    the aggregator has refused this update and goes on.
    """

    code = "codec"


class ThetaMismatchError(ProtocolError):
    """The mask was coded under other global probabilities than the receiver holds.

    The device trained for another round or job. It fetches the current probabilities by itself and trains again.
    """

    code = "theta-mismatch"


class LimitError(ProtocolError):
    """The message is well formed, but larger than the receiver agreed to hold.

    Raise the limit that the text names, if you trust the sender; otherwise leave it.
    """

    code = "limit"


class SpecError(ProtocolError):
    """The ModelSpec describes no network, is not in canonical form, or is not the one that its digest names.

    Export the model again. If your own tool wrote the spec, compare it with section 4 of PROTOCOL.md.
    """

    code = "spec"


class BundleError(ProtocolError):
    """The bundle or model file cannot be opened safely.

    Copy the file again and compare its SHA-256. If it was written by an older version, export it or finalize it again.
    """

    code = "bundle"


class UserError(Exception):
    """Something the person at the keyboard can mend; shown without a traceback, exit status 2."""


class MissingPackageError(UserError):
    """A package that has to be installed first; exit status 3."""
