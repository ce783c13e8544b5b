"""A small folder of results for the tests of the page: gaps, a failure, one seed, and names of anyone."""

from inrun_bench.runs.store import Store
from inrun_bench.runs.unit import REFERENCE, Unit

NASTY = """<img src=x onerror=alert(1)> & "it's" """.strip()
METHODS = {"inrun-first": 0.7, "knn": 0.9, "random": -0.05, NASTY.replace("/", ""): 0.1}


def small_store(root):
    """Return a folder with two experiments, one of another package, and what may be missing."""
    store = Store(root)
    for task, seeds in (("some-task", range(3)), ("another-task", range(1))):
        for seed in seeds:
            ceiling = {"metric": "spearman_ceiling", "value": 0.97}
            store.write(Unit("agreement", task, REFERENCE, seed), [{"metric": "spearman", "value": 0.9}, ceiling])
            for place, (method, value) in enumerate(METHODS.items()):
                if (task, method) == ("another-task", "knn"):
                    continue
                row = {"metric": "spearman", "value": value + 0.01 * seed, "seconds": 1.5 + place, "evaluations": place}
                store.write(Unit("agreement", task, method, seed), [row])
    for method, value in METHODS.items():
        store.write(Unit("detection", "some-task", method, 0), [{"metric": "auroc", "value": 0.5 + value / 2}])
    failed = {"metric": "none", "value": None, "status": "error", "message": f"ValueError: {NASTY}"}
    store.write(Unit("detection", "some-task", "mc-10", 0), [failed])
    store.write(Unit("acme-experiment", "some-task", "knn", 0), [{"metric": "acme", "value": 1.0}])
    return store
