"""A task of your own: a data frame with gaps and a category, a model, and a recipe.

What you learn: what `tasks.from_arrays` refuses, since you must decide it; how value i leads back to a row of the
frame; and what is lost when the model is trained without the best rows, or without the worst.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from torch import nn

import tasks
from inrun_bench import few_run_shapley, removal_curve

rng = np.random.default_rng(0)
patients, progression = load_diabetes(as_frame=True, return_X_y=True, scaled=False)
patients["sex"] = patients["sex"].map({1.0: "a", 2.0: "b"})
patients.loc[rng.random(len(patients)) < 0.2, ["bmi", "s5"]] = np.nan  # the two that foretell most
recipe = tasks.Recipe("sgd", learning_rate=0.02, batch_size=10, epochs=4)


def task_of(x):
    """Return a task of features x [n, d]: linear regression."""
    return tasks.from_arrays(
        x, progression, model=lambda: nn.Linear(x.shape[1], 1), recipe=recipe, n_train=120, classification=False
    )


numeric = pd.get_dummies(patients, columns=["sex"], drop_first=True)
for x in (patients, numeric):
    try:
        task_of(x)
    except (TypeError, ValueError) as error:
        print(f"refused: {error}")

has_gaps = numeric["bmi"].isna()
filled = numeric.fillna(numeric.median()).assign(has_gaps=has_gaps)  # medians of all rows: the split comes later
task = task_of(filled)
valuation = few_run_shapley(task, points=4)
valued = pd.Series(valuation.values, index=patients.index[task.rows])  # value i is that of row task.rows[i]
by_gaps = valued.groupby(has_gaps[valued.index]).mean()
print(f"mean value of complete rows {by_gaps[False]:.5f}, of filled ones {by_gaps[True]:.5f}")
curve = removal_curve(task, valuation)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
groups = [valued[~has_gaps[valued.index]], valued[has_gaps[valued.index]]]
left.hist(groups, 25, stacked=True, color=["C0", "C1"], label=["complete", "gaps filled"], rwidth=0.9)
left.set(title="Values of 120 patients", xlabel="value, drop of the validation loss", ylabel="patients")
left.locator_params(axis="x", nbins=5)
left.legend(frameon=False)
right.plot(100 * curve.fractions, -curve.bottom, "o-", ms=4, label="the worst first")
right.plot(100 * curve.fractions, -curve.top, "o-", ms=4, label="the best first")
right.set(title="Retrained without them", xlabel="patients removed, %", ylabel="loss on the test set")
right.legend(frameon=False)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "own_task.png", dpi=150)
