"""Compare splits of the data: what it costs when every device knows a few classes only.

    pip install 'seedmask[onnxruntime,sim]'
    python examples/non_iid.py

"iid" deals images out at random, "dirichlet:0.3" gives every device a lopsided mix, "classes:2" exactly two of the ten
digits. All else is the same, down to the seed, so what differs between the curves is the split. The network ships with
the package: no torch is needed.
"""

from matplotlib import pyplot

from sim import simulate

figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)

for split in ("iid", "dirichlet:0.3", "classes:2"):
    history = simulate("mlpn", "digits", devices=10, rounds=8, split=split, examples=100, seed=1)
    accuracy = [record.accuracy.mean for record in history.rounds]
    axes.plot(range(1, len(accuracy) + 1), accuracy, marker="o", label=split)
    print(f"{split:<14} accuracy {accuracy[0]:.1%} after the first round, {accuracy[-1]:.1%} after the last")

axes.set_xlabel("round")
axes.set_ylabel("test accuracy")
axes.legend(title="split")
axes.grid(alpha=0.3)
figure.savefig("non_iid.png")
print("wrote non_iid.png")
