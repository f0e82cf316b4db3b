"""Training state that keeps its vectors on a GPU until they are read; for the runtimes that run on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_client.runtimes.contract import F32, Exact, State


class OnDevice(State):
    """State with vectors on a GPU; each is copied to the host when it is first read."""

    tensors: dict[str, Any]

    def __init__(self, before: State, new: dict[str, Any], t: int, exact: Exact, fetch: Callable[[Any], F32]) -> None:
        """Take vectors [d] on the GPU from `new`; those missing from `new` are kept from `before`.

        `fetch` copies one of them to the host.
        """
        kept = before.tensors if isinstance(before, OnDevice) else {}
        for name, value in {"tensors": {**kept, **new}, "t": t, "exact": exact, "_fetch": fetch}.items():
            object.__setattr__(self, name, value)
        for name in ("m", "v", "anchor"):
            if name not in self.tensors:
                object.__setattr__(self, name, getattr(before, name))

    def __getattr__(self, name: str) -> Any:
        if name in ("tensors", "_fetch") or name not in self.tensors:
            raise AttributeError(name)
        array = self._fetch(self.tensors[name])
        object.__setattr__(self, name, array)
        return array

    def shape_of(self, name: str) -> tuple[int, ...]:
        """See State."""
        shape: Any = self.tensors[name].shape if name in self.tensors else super().shape_of(name)
        return tuple(shape() if callable(shape) else shape)  # onnxruntime has a method where torch has an attribute


def on_device(state: State, name: str, put: Callable[[F32], Any]) -> Any:
    """Return the vector `name` of `state` on the GPU; `put` copies it there if it is on the host."""
    if isinstance(state, OnDevice) and name in state.tensors:
        return state.tensors[name]
    return put(getattr(state, name))
