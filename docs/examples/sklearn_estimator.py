"""Values of the training samples of a scikit-learn estimator, by retraining it on coalitions of them.

What you learn: any estimator is a game (`EstimatorGame`), whatever it takes: here, samples with gaps; what standard
errors say; and how a rule ends an estimate that is sure enough.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeClassifier

from baselines import permutation_shapley, stderr_below
from inrun_bench import detection
from tasks.learners import EstimatorGame

N_TRAIN, N_WRONG = 40, 6
rng = np.random.default_rng(0)

wine, cultivar = load_wine(return_X_y=True)
wine[rng.random(wine.shape) < 0.05] = np.nan  # a twentieth of the measurements is missing
x, x_val, y, y_val = train_test_split(wine, cultivar, train_size=N_TRAIN, stratify=cultivar, random_state=0)
wrong = rng.choice(N_TRAIN, N_WRONG, replace=False)
y[wrong] = (y[wrong] + 1) % 3

tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=2)
game = EstimatorGame(tree, x, y, x_val, y_val)  # worth: accuracy on the other samples
valuation = permutation_shapley(game, budget=3000, stop=stderr_below(0.025), rng=0)

print(valuation)
total, empty = game(np.array([[True] * N_TRAIN, [False] * N_TRAIN]))
print(f"values add up to {valuation.values.sum():.6f}, accuracy rises by {total - empty:.6f}")
print("AUROC of low values for wrong labels:", round(detection(valuation, wrong)["auroc"], 3))

order = np.argsort(valuation.values)
is_wrong = np.isin(order, wrong)
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for mask, color, label in ((~is_wrong, "C0", "right"), (is_wrong, "C3", "wrong")):
    place = np.flatnonzero(mask)
    ax.errorbar(
        place, valuation.values[order[mask]], valuation.stderr[order[mask]], fmt="o", ms=4, color=color, label=label
    )
ax.axhline(0, color="0.7", linewidth=0.8)
ax.set(
    title="Shapley values of 40 wines, with standard errors",
    xlabel="training samples, by value",
    ylabel="value, share of\nright predictions",
)
ax.legend(title="label", frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "sklearn_estimator.png", dpi=150)
