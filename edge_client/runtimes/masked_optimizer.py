"""Masked optimiser: the part of a step that works weight by weight, in NumPy.

Before the network's gradient it draws the mask; after it, it applies the straight-through estimator and the optimiser:
FedPM's masks (Isik et al., arXiv 2209.15328), with Adam (Kingma and Ba, arXiv 1412.6980) or SGD. A graph would pass
over all weights once per operation. Here one piece of each vector at a time goes through all operations while it is in
the cache, which halves the time and needs no temporary vectors.
"""

from __future__ import annotations

import weakref
from typing import Final

import numpy as np

from edge_client.runtimes.arithmetic import BETA1, BETA2, corrected, pulls
from edge_client.runtimes.contract import F32, State, StepConfig

PIECE: Final = 1 << 16
"""Weights per piece: a dozen pieces of this length fit into an L2 cache of a few megabytes."""

MOST: Final = 7
"""Vectors that one step needs besides those of the state before it."""


class MaskedOptimizer:
    """Optimiser of one model's scores; `w`: its random weights, float32 [d].

    It keeps a buffer for theta, and vectors to use again.
    """

    def __init__(self, w: F32) -> None:
        self.w = w
        self._theta = np.empty_like(w)
        self._free: list[bytearray] = []
        self._round: weakref.ref[F32] | None = None  # the noise of the last step, one array for all steps of a round

    def draw(self, scores: F32, noise: F32, mean: bool) -> F32:
        """Return the masked weights, w * (noise < sigmoid(scores)), or w * sigmoid(scores) if `mean`; float32 [d].

        `scores` and `noise` are float32 [d]. Buffers are kept for the next steps until the array `noise` is freed.
        """
        if self._round is None or self._round() is not noise:
            free = self._free  # not self, so that dropping a runtime frees its memory at once
            self._round = weakref.ref(noise, lambda _: free.clear())
        drawn = self.vector()
        for piece in _pieces(len(self.w)):
            theta, weights = self._theta[piece], drawn[piece]
            np.negative(scores[piece], out=theta)
            with np.errstate(over="ignore"):  # overflow to infinity is right: its reciprocal is 0
                np.exp(theta, out=theta)
            theta += 1
            np.reciprocal(theta, out=theta)
            np.copyto(weights, theta if mean else noise[piece] < theta)
            weights *= self.w[piece]
        return drawn

    def apply(self, gradient: F32, state: State, rule: StepConfig) -> State:
        """Return the state after a step, in new arrays; exact values stay as they are. See `Runtime.step`.

        `gradient` float32 [d]: of the loss by the masked weights. `state`: the one whose scores the last `draw` took.
        """
        d, t, adam = len(self.w), state.t + 1, rule.optimizer == "adam"
        rate, epsilon = corrected(rule.rate, t) if adam else (rule.rate, 0.0)
        by_score, by_anchor, constant = pulls(rule, d)
        after = {name: self.vector() for name in ("scores", "m", "v") if name in rule.needs}
        room = np.empty((2, min(PIECE, d)), np.float32)
        for piece in _pieces(d):
            theta, scores, new = self._theta[piece], state.scores[piece], {n: a[piece] for n, a in after.items()}
            g, other = (each[: len(theta)] for each in room)
            np.multiply(gradient[piece], self.w[piece], out=g)
            if rule.times_theta:
                g *= theta
            if by_score:
                g += np.multiply(scores, np.float32(by_score), out=other)
            if by_anchor:
                g += np.multiply(state.anchor[piece], np.float32(by_anchor), out=other)
            if constant:
                g += np.float32(constant)
            np.multiply(theta, theta, out=other)
            g *= np.subtract(theta, other, out=other)  # theta (1 - theta)
            if adam:
                np.multiply(state.m[piece], np.float32(BETA1), out=new["m"])
                new["m"] += np.multiply(g, np.float32(1 - BETA1), out=other)
                np.multiply(state.v[piece], np.float32(BETA2), out=new["v"])
                g *= g
                g *= np.float32(1 - BETA2)
                new["v"] += g
                np.sqrt(new["v"], out=g)
                g += np.float32(epsilon)
                np.divide(new["m"], g, out=g)
            elif rule.momentum:
                np.multiply(state.m[piece], np.float32(rule.momentum), out=new["m"])
                new["m"] += g
                g = new["m"]
            np.multiply(g, np.float32(rate), out=other)
            np.subtract(scores, other, out=new["scores"])
        return State(after["scores"], after.get("m", state.m), after.get("v", state.v), t, state.anchor, state.exact)

    def vector(self) -> F32:
        """Return a float32 [d] with arbitrary values, in memory of an earlier vector to which nothing refers any more.

        New memory would have to be cleared by the system, which takes as long as the arithmetic. A step puts its
        gradient where an older state was, and its new state where the masked weights were.
        The memory is a bytearray, so that every view keeps the vector itself alive: were it another array's, NumPy
        would make views refer to that array instead, and a vector could be reused while views of it are in use.
        """
        memory = self._free.pop() if self._free else bytearray(self.w.nbytes)
        vector = np.frombuffer(memory, np.float32)
        weakref.finalize(vector, self._back, memory).atexit = False
        return vector

    def _back(self, memory: bytearray) -> None:
        if self._round is not None and self._round() is not None and len(self._free) < MOST:
            self._free.append(memory)


def _pieces(d: int) -> list[slice]:
    return [slice(at, min(at + PIECE, d)) for at in range(0, d, PIECE)]
