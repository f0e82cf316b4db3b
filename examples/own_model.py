"""Train your own torch model: eight devices learn to read digits, and none of them shows anybody its images.

    pip install 'seedmask[onnxruntime,export,sim]'
    python examples/own_model.py

The module is an ordinary one. Only its architecture is used: every device makes the same random signs from a seed, and
what they learn together is which of these weights to keep. A device sends one mask a round, in a few hundred bytes.
"""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sim import simulate

# 1,797 images of 8x8, values 0 .. 16. A fifth of them measures the model; no device ever sees those.
digits = load_digits()
x, x_test, y, y_test = train_test_split(digits.images[:, None], digits.target, test_size=0.2, random_state=0)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(64 * 2 * 2, 10),
)

history = simulate(model, (x, y), test=(x_test, y_test), devices=8, rounds=10, seed=1, on_round=print)

print(history)
history.plot("own_model.png")
history.model.save("own_model.smk")
