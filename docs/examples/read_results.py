"""The published results, read with pandas: a figure of your own.

What you learn: rows are Parquet files, one an experiment, which anything reads; what their columns are; and how far
agreement with a run's own game foretells agreement with conventional retraining.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

RESULTS = Path(__file__).parents[2] / "results"
METHODS = {"inrun-first": "In-Run, first order", "few-run-4": "4 differentiated runs", "mc-10": "10 permutations"}
METHODS |= {"knn": "KNN-Shapley"}

rows = pd.read_parquet(RESULTS / "retraining" / "rows" / "retraining.parquet")
rows = rows.query("status == 'ok' and metric == 'spearman' and method in @METHODS")
by_judge = rows.pivot_table(index=["task", "method"], columns="judge", values="value")  # mean over seeds 0 to 4
by_judge = by_judge[["own", "conventional"]].dropna()
print(by_judge.round(3))

figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
ax.axline((0, 0), slope=1, color="0.7", linewidth=0.8)
markers = dict(zip(by_judge.index.levels[0], "osD^vP", strict=True))
for (task, method), agreement in by_judge.iterrows():
    color = f"C{list(METHODS).index(method)}"
    ax.plot(agreement["own"], agreement["conventional"], markers[task], color=color, alpha=0.8)
for number, label in enumerate(METHODS.values()):
    ax.plot([], [], "s", color=f"C{number}", label=label)
for task, marker in markers.items():
    ax.plot([], [], marker, color="0.4", label=task)
ax.set(
    title="Agreement with two kinds of retraining",
    xlabel="Spearman correlation with the run's own game",
    ylabel="Spearman correlation with conventional retraining",
    xlim=(0, 1.05),
    ylim=(0, 1.05),
    aspect="equal",
)
figure.legend(loc="outside right upper", frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "read_results.png", dpi=150)
