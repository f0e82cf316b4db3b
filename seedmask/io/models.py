"""Open a finished model and ask it: `load_model("model.smk").predict(x)`.

How a network is computed is not this package's business: what can do it is installed beside it and announced under the
entry point group `seedmask.predictors`, as the programs of the `seedmask` command are.
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
"""From raw inputs [n, ...] to what the last layer gives, float32 [n, classes]. Raises UserError for other inputs."""


class Model:
    """A finished model: a seed and a mask, and whatever can be asked of the two.

    Example:
        >>> model = load_model("model.smk")          # doctest: +SKIP
        >>> model.predict(x)                         # doctest: +SKIP
        array([9, 2, 1, 1, 6])
    """

    def __init__(self, finished: FinishedModel, bundle: Bundle | None = None) -> None:
        """Take what a file holds; `bundle`, that of the same spec, has the graph with which onnxruntime predicts."""
        self.finished, self.bundle = finished, bundle
        self._predictor: Predictor | None = None

    @property
    def spec(self) -> ModelSpec:
        """Layers, shapes, seed and loss."""
        return self.finished.spec

    @property
    def mask(self) -> Mask:
        """Which weights are kept, uint8 [d] of 0 and 1."""
        return self.finished.mask

    @property
    def exact(self) -> I32:
        """Values of the exact tensors, int32 [e] in units of 2**-12."""
        return self.finished.exact

    def weights(self) -> F32:
        """Return the masked weights, float32 [d] of 0 and +-c, made again from the seed."""
        return self.finished.weights()

    def parameters(self) -> dict[str, F32]:
        """Return every tensor by torch's name for it, float32 in its shape."""
        return self.finished.parameters()

    def scores(self, x: npt.ArrayLike) -> F32:
        """Return what the last layer gives for raw inputs x [n, ...]: float32 [n, classes], logits or outputs.

        Computed by onnxruntime where it is installed and the bundle is known, else by NumPy; torch is never loaded.
        Raises UserError if x does not fit the model.
        """
        if self._predictor is None:
            self._predictor = _predictor()(self.finished, self.bundle)
        return self._predictor(np.asarray(x))

    def predict(self, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return what the model says of raw inputs x [n, ...], values as the devices' data had them.

        Class numbers, int64 [n]; or outputs, float32 [n, outputs], where the loss is "mse". Raises UserError if x does
        not fit the model.
        """
        scores = self.scores(x)
        return scores if self.spec.loss == "mse" else scores.argmax(axis=1)

    def save(self, path: Path | str) -> None:
        """Write the model file (.smk): about a bit per weight. Raises OSError."""
        write_atomic(Path(path), models.encode(self.finished))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what predicts, a session of another library: a copy opens its own."""
        return {**self.__dict__, "_predictor": None}

    def __repr__(self) -> str:
        return f"<Model {self.spec.name}: {self.spec.d:,} weights, {self.mask.mean():.1%} of them kept>"


def load_model(path: Path | str, bundle: Path | str | None = None) -> Model:
    """Open a finished model, the model.smk that a job leaves behind.

    `bundle`: the file that the fleet trained with; where none is named, one beside `path` with the same name
    (model.bundle) is used, if it is of this model. Raises UserError: what cannot be read, or does not belong together.

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
