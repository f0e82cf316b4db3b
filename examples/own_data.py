"""Bring your own data: machines that feel their own vibration learn to tell three states apart.

    pip install 'seedmask[onnxruntime,export,sim]'
    python examples/own_data.py

Data are NumPy arrays: x [n, ...], one example after the other, and y [n], their classes from 0. Here they come from a
file, as `seedmask simulate --data vibration.npz` and a real device's `[data] path = "vibration.npz"` would read it.
Values need no scaling: the range of x becomes -1 .. 1 inside the model (on the command line, `seedmask export` is told
it by --range). The run stops early, once it is good enough.
"""

import numpy as np
from torch import nn

from sim import RoundRecord, StopSimulation, simulate

# 1,200 windows of 64 samples of one sensor: a machine at rest, running, or with a worn bearing.
rng = np.random.default_rng(1)
time = np.arange(64)
y = rng.integers(0, 3, 1200)
hum = np.sin(0.4 * time + rng.uniform(0, 6, (1200, 1))) * (y > 0)[:, None]
knock = 2.0 * (rng.random((1200, 64)) < 0.08) * (y == 2)[:, None]
x = (hum + knock + rng.normal(0, 0.3, (1200, 64))).astype(np.float32)
np.savez("vibration.npz", x=x[:, None], y=y)  # [n, channels, samples]

model = nn.Sequential(
    nn.Conv1d(1, 32, 5, padding=2, bias=False),
    nn.ReLU(),
    nn.MaxPool1d(2),
    nn.Conv1d(32, 32, 5, padding=2, bias=False),
    nn.ReLU(),
    nn.AdaptiveAvgPool1d(1),
    nn.Flatten(),
    nn.Linear(32, 3),
)


def good_enough(record: RoundRecord) -> None:
    """Print each round, and end the run at 95 %."""
    print(record)
    if record.accuracy.thresholded >= 0.95:
        raise StopSimulation


# Nobody named a test set, so a fifth of the examples is held out to measure the model.
history = simulate(model, "vibration.npz", devices=6, rounds=20, seed=1, on_round=good_enough)

print(history.summary["origin"])
print(f"{'stopped early' if history.stopped else 'not there yet'} after {len(history.rounds)} rounds")
