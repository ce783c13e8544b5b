"""A method of your own, judged beside those of the benchmark.

What you learn: a method is a function of a task and a seed that returns one value a training sample; `benchmark` runs
it beside methods by name and keeps the rows in a folder; who finds wrong labels need not agree with retraining.
"""

import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch

from inrun_bench import benchmark

TASKS = ["breast-cancer-logreg", "wine-logreg"]  # a tenth of their labels is wrong


def margins(task, seed):
    """Value samples by the logit of their label over the highest other one, mean over the run (arXiv 2001.10528)."""
    model = task.model()
    optimizer, labels = task.optimizer(model), task.train.y
    is_label = torch.nn.functional.one_hot(labels, task.n_classes).bool()
    totals = np.zeros(task.n_train)
    for index in task.batches():
        task.train_on(model, optimizer, index)
        with torch.no_grad():
            logits = model(task.train.x)
        others = logits.masked_fill(is_label, -torch.inf).amax(1)
        totals += (logits[is_label] - others).numpy()
    return totals / len(task.batches())


if __name__ == "__main__":
    methods = [margins, "inrun-first", "knn", "random"]
    with tempfile.TemporaryDirectory() as folder:
        found = benchmark(TASKS, methods, ["agreement", "detection"], out=folder, jobs=1)
        tables = {name: found.rows(name).query("method != 'reference'") for name in ("agreement", "detection")}

    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
    questions = (
        ("agreement", "spearman", "Spearman correlation with\nShapley values by retraining", 0),
        ("detection", "auroc", "AUROC of low values\nfor wrong labels", 0.5),
    )
    for ax, (name, metric, label, chance) in zip(axes, questions, strict=True):
        rows = tables[name].query("metric == @metric")
        print(rows.pivot_table(index="method", columns="task", values="value").round(3), "\n")
        for number, (task, of_task) in enumerate(rows.groupby("task")):
            ax.plot(of_task["value"], of_task["method"], "os"[number], color=f"C{number}", alpha=0.6, label=task)
        ax.axvline(chance, color="0.6", linewidth=0.8, linestyle="--", label="chance")
        ax.set(xlabel=label, ylim=(-0.5, len(methods) - 0.5))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "own_method.png", dpi=150)
