"""Training state whose vectors stay on a GPU until somebody looks at them; for the runtimes that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_client.runtimes.contract import F32, Exact, State


class OnDevice(State):
    """Hold a State whose vectors come to the host when, and only if, somebody asks for them."""

    tensors: dict[str, Any]

    def __init__(self, before: State, new: dict[str, Any], t: int, exact: Exact, fetch: Callable[[Any], F32]) -> None:
        """`new`: vectors on the device, [d]; those that only `before` has there are kept. `fetch` brings one."""
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
        return tuple(shape() if callable(shape) else shape)  # a method in onnxruntime


def on_device(state: State, name: str, put: Callable[[F32], Any]) -> Any:
    """Return the vector `name` of `state` on the device: the one that is there already, else `put` of the host's."""
    if isinstance(state, OnDevice) and name in state.tensors:
        return state.tensors[name]
    return put(getattr(state, name))
