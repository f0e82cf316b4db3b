"""Seedmask's shared library: what a client in any other language has to reproduce exactly.

`PROTOCOL.md` beside this file is normative; this package is one implementation of it, `web/src` is the second, in
JavaScript, and `tests/vectors/v3.json` holds the literals both must agree on.
"""

__version__ = "0.1.0"
PROTOCOL_VERSION = 3
