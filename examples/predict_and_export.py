"""Use what was learned: save the model, ask it, and hand it to any program that opens ONNX.

    pip install 'seedmask[onnxruntime,export,sim]'
    python examples/predict_and_export.py

A finished model is a seed and a mask, about a bit per weight. `load_model` needs NumPy alone; with the bundle that the
fleet trained with beside the model, onnxruntime predicts faster.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from export.formats import FORMATS, Wish
from seedmask import load_model
from sim import simulate
from sim.datasets import load

history = simulate("mlpn", "digits", devices=4, rounds=5, seed=1, on_round=print)
history.model.save("digits.smk")

# On any machine: ask the model. It knows how to scale its inputs, which are bytes here.
test = load("digits").test
model = load_model("digits.smk")
said = model.predict(test.x)
print(f"digits.smk has {Path('digits.smk').stat().st_size:,} bytes for {model.spec.d:,} weights")
print(f"{(said == test.y).mean():.1%} of {len(said)} digits are read correctly; the first ten are {said[:10].tolist()}")

# For everybody else: an ONNX file with weights in it, which takes the same raw inputs.
Path("digits.onnx").write_bytes(FORMATS["onnx"].write(model.finished, Wish()))
session = onnxruntime.InferenceSession("digits.onnx")
logits = session.run(None, {session.get_inputs()[0].name: test.x.astype(np.float32)})[0]
print(f"digits.onnx agrees on {(logits.argmax(1) == said).mean():.1%} of them")
