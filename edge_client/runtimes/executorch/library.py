"""Access to ExecuTorch's C++ libraries by ctypes, without torch.

The wheel of ExecuTorch has the libraries and their headers; `shim.cpp` offers what is needed of them as C functions. It
is compiled once per machine, by the machine's own g++, into the user's cache. The file's name states everything on
which the compiled shim depends: a digest of the source, ExecuTorch's version, and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask.errors import BundleError, UserError

VERSION: Final = "1.5"
SOURCE: Final = Path(__file__).with_name("shim.cpp")
# Each needs those before it: a library that is loaded already is found by its name.
LIBRARIES: Final = (
    "executorch",
    "executorch_threadpool",
    "executorch_kernels_optimized",
    "executorch_backend_xnnpack",
)
# From the wheel's executorch-config.cmake: without them classes in the headers have other members.
_DEFINES: Final = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED")
_ROOM: Final = 512
_DIMENSIONS: Final = 8
_ALIGNED: Final = 128

Array = npt.NDArray[Any]


class Program:
    """ExecuTorch program in memory, whose methods `run` by name."""

    def __init__(self, data: bytes, threads: int) -> None:
        """Load a program from the bytes of its file. Raises BundleError.

        `threads` holds for the whole process; 0 leaves the choice to ExecuTorch.
        """
        self._library = load()
        if threads:
            self._library.seedmask_threads(threads)
        # ExecuTorch reads the file in place: keep it, at an aligned address, since its segments are aligned in it.
        self._data = aligned(len(data), np.uint8)
        self._data[:] = np.frombuffer(data, np.uint8)
        self._why = ctypes.create_string_buffer(_ROOM)
        self._handle = self._library.seedmask_open(self._data.ctypes.data, len(data), self._why, _ROOM)
        if not self._handle:
            raise BundleError(f"executorch: {self._reason()}")

    def shape(self, method: str, index: int, output: bool = False) -> tuple[int, ...]:
        """Return the shape of an input (or output) of a method. Raises BundleError if there is no such input."""
        sizes = (ctypes.c_int64 * _DIMENSIONS)()
        rank = self._library.seedmask_shape(
            *(self._handle, method.encode(), int(output), index, sizes, _DIMENSIONS, self._why, _ROOM)
        )
        if rank < 0:
            raise BundleError(f"executorch: {self._reason()}")
        return tuple(sizes[:rank])

    def planned(self, method: str) -> int:
        """Return the bytes planned for a method, without inputs, outputs and delegates' memory. Raises BundleError."""
        found: int = self._library.seedmask_planned(self._handle, method.encode(), self._why, _ROOM)
        if found < 0:
            raise BundleError(f"executorch: {self._reason()}")
        return found

    def run(self, method: str, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run a method on contiguous arrays of its dtypes and sizes, and write to `outputs`. Raises RuntimeError."""
        arguments: list[Any] = []
        for arrays in (inputs, outputs):
            arguments.append((ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays)))
            arguments.append((ctypes.c_size_t * len(arrays))(*(array.nbytes for array in arrays)))
            arguments.append(len(arrays))
        if self._library.seedmask_run(self._handle, method.encode(), *arguments, self._why, _ROOM):
            raise RuntimeError(f"executorch: {self._reason()}")

    def _reason(self) -> str:
        return self._why.value.decode(errors="replace")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.seedmask_close(self._handle)


def aligned(size: int, kind: Any) -> Array:
    """Return an empty array [size] that begins at a multiple of 128 bytes and is followed by 128 unused bytes.

    XNNPACK reads whole vector registers, which may reach past the end of an array; it never writes there.
    """
    length = size * np.dtype(kind).itemsize
    room = np.empty(length + 2 * _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    return room[start : start + length].view(kind)


@functools.cache
def load() -> ctypes.CDLL:
    """Return the loaded shim. Raises UserError, which says what is missing and how to install it."""
    home, version = _home()
    shim = built(home, version, cache())
    try:
        for name in LIBRARIES:
            ctypes.CDLL(str(home / "lib" / f"lib{name}.so"), ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(shim))
    except OSError as error:  # the wheel was built for another libc or processor
        raise UserError(f"runtime executorch cannot be loaded: {error}") from None
    pointer, text, size, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    library.seedmask_open.argtypes = [pointer, size, text, size]
    library.seedmask_open.restype = pointer
    library.seedmask_close.argtypes = [pointer]
    library.seedmask_close.restype = None
    library.seedmask_threads.argtypes = [ctypes.c_uint32]
    library.seedmask_shape.argtypes = [pointer, text, number, size, pointer, number, text, size]
    library.seedmask_planned.argtypes = [pointer, text, text, size]
    library.seedmask_planned.restype = ctypes.c_int64
    library.seedmask_run.argtypes = [pointer, text, pointer, pointer, size, pointer, pointer, size, text, size]
    return library


def _home() -> tuple[Path, str]:
    """Return folder and version of the executorch package, without importing it, since that needs torch."""
    found = importlib.util.find_spec("executorch")
    version = importlib.metadata.version("executorch")
    if version.rsplit(".", 1)[0] != VERSION:
        raise UserError(f"runtime executorch needs executorch {VERSION}.x, found {version}: its C++ interface changes")
    home = Path(next(iter((found and found.submodule_search_locations) or ["executorch"])))
    if not (home / "lib" / "libexecutorch.so").exists():
        raise UserError(f"{home} has no lib/libexecutorch.so; there is none for {platform.machine()} in this wheel")
    return home, version


def cache() -> Path:
    """Return the folder for compiled shims."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seedmask"


def command(home: Path, output: Path, compiler: str = "g++") -> list[str]:
    """Return the command that compiles the shim to `output`; `home`: folder of the executorch package."""
    includes = (home / "include", home / "include/executorch/runtime/core/portable_type/c10")
    return [
        *(compiler, "-std=c++17", "-O2", "-w", "-fPIC", "-shared", "-Wl,--no-undefined"),
        *(f"-D{name}" for name in _DEFINES),
        *(f"-I{folder}" for folder in includes),
        *(str(SOURCE), "-o", str(output), f"-L{home / 'lib'}", "-lexecutorch", "-lexecutorch_threadpool"),
    ]


def built(home: Path, version: str, folder: Path) -> Path:
    """Return the path of the compiled shim in `folder`; compile it first if it is not there. Raises UserError."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    shim = folder / f"executorch-{version}-{platform.machine()}-{digest}.so"
    if shim.exists():
        return shim
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Compile to a temporary file, then rename: two processes may compile at once, and a compiler may be killed.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / shim.name
            subprocess.run(command(home, made), check=True, capture_output=True, text=True)
            made.replace(shim)
    except FileNotFoundError:
        raise UserError(
            "runtime executorch compiles 140 lines of C++ on first use, and there is no g++ here: apt install g++"
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"runtime executorch cannot be compiled:\n{error.stderr.strip()[-2000:]}") from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; XDG_CACHE_HOME names another place") from None
    return shim
