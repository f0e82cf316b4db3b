"""Python API of a finished model: `load_model("model.smk").predict(x)`.

This package does not compute networks itself. Packages that can are found by the entry point group
`seedmask.predictors`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seedmask import bundle as bundles
from seedmask import model as models
from seedmask.bundle import Bundle
from seedmask.errors import MissingPackageError
from seedmask.io.files import write_atomic
from seedmask.mask import F32, I32, Mask
from seedmask.model import FinishedModel
from seedmask.spec import ModelSpec

GROUP: Final = "seedmask.predictors"

Predictor = Callable[[npt.NDArray[Any]], F32]
"""Function from raw inputs [n, ...] to the last layer's output, float32 [n, classes].

It raises UserError if the inputs do not fit the model.
"""


class Model:
    """Finished model, ready for predictions: a network that a seed and a mask determine.

    Example:
        >>> model = load_model("model.smk")          # doctest: +SKIP
        >>> model.predict(x)                         # doctest: +SKIP
        array([9, 2, 1, 1, 6])
    """

    def __init__(self, finished: FinishedModel, bundle: Bundle | None = None) -> None:
        """Hold the content of a model file; `bundle`, of the same spec, has the graph that onnxruntime computes."""
        self.finished, self.bundle = finished, bundle
        self._predictor: Predictor | None = None

    @property
    def spec(self) -> ModelSpec:
        """Description of the network: layers, shapes, seed and loss."""
        return self.finished.spec

    @property
    def mask(self) -> Mask:
        """Mask over the masked weights, uint8 [d]: 1 keeps the weight, 0 makes it zero."""
        return self.finished.mask

    @property
    def exact(self) -> I32:
        """Values of the exact tensors, int32 [e] in units of 2**-12."""
        return self.finished.exact

    def weights(self) -> F32:
        """Return the masked weights, float32 [d] of 0, +c and -c, regenerated from the seed."""
        return self.finished.weights()

    def parameters(self) -> dict[str, F32]:
        """Return every tensor by its name in the torch module, float32 in its own shape."""
        return self.finished.parameters()

    def scores(self, x: npt.ArrayLike) -> F32:
        """Return the last layer's output for raw inputs `x` [n, ...]: logits or outputs, float32 [n, classes].

        Computed by onnxruntime if it is installed and the bundle is known, otherwise by NumPy; torch is never imported.
        Raises UserError if `x` does not fit the model.
        """
        if self._predictor is None:
            self._predictor = _predictor()(self.finished, self.bundle)
        return self._predictor(np.asarray(x))

    def predict(self, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return predictions for raw inputs `x` [n, ...], in the same units as the devices' training data.

        Class numbers, int64 [n]; or outputs, float32 [n, outputs], if the loss is "mse". Raises UserError if `x` does
        not fit the model.
        """
        scores = self.scores(x)
        return scores if self.spec.loss == "mse" else scores.argmax(axis=1)

    def save(self, path: Path | str) -> None:
        """Write the model file `path` (.smk), at most about one bit per weight. Raises OSError."""
        write_atomic(Path(path), models.encode(self.finished))

    def __repr__(self) -> str:
        return f"<Model {self.spec.name}: {self.spec.d:,} weights, {self.mask.mean():.1%} of them kept>"


def load_model(path: Path | str, bundle: Path | str | None = None) -> Model:
    """Open the finished model `path`, the file model.smk that a job writes.

    `bundle`: file that the fleet trained with; by default the file beside `path` with the same name (model.bundle), if
    there is one and it belongs to this model. Raises UserError if a file cannot be read, or the two do not belong
    together.

    Example:
        >>> from seedmask import load_model          # doctest: +SKIP
        >>> load_model("model.smk").predict(x)       # doctest: +SKIP
        array([9, 2, 1, 1, 6])
    """
    path = Path(path)
    finished = models.load(path)
    return Model(finished, bundles.of_model(finished.spec, path, None if bundle is None else Path(bundle)))


def _predictor() -> Callable[[FinishedModel, Bundle | None], Predictor]:
    for entry in importlib.metadata.entry_points(group=GROUP):
        found: Callable[[FinishedModel, Bundle | None], Predictor] = entry.load()
        return found
    raise MissingPackageError(
        f"nothing installed here announces {GROUP}, so no network can be run: pip install seedmask"
    )
