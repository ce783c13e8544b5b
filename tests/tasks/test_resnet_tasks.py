"""The paper's Table 4 in form: on embedded images, and on CIFAR-10 from disk, of which a stand-in serves here."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

import tasks
from inrun_bench.methods import METHODS
from tasks.catalog import cifar10_resnet
from tasks.catalog.cifar10_resnet import BATCHES, FOLDER


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return {name: (rng.integers(0, 256, (60, 3072), dtype=np.uint8), np.arange(60) % 10) for name in BATCHES}


def pickled(folder, images):
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, (pixels, labels) in images.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(
            pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2)
        )


def binary(folder, images):
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for name, (pixels, labels) in images.items():
        joined = np.hstack([labels[:, None].astype(np.uint8), pixels])
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(joined.tobytes())


@pytest.mark.parametrize("write", [pickled, binary])
def test_images_are_read_from_either_form(tmp_path, monkeypatch, images, write):
    write(tmp_path, images)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    x, y = cifar10_resnet.dataset()
    assert x.shape == (360, 3, 32, 32)
    expected = np.concatenate([pixels for pixels, _ in images.values()]) / 255
    np.testing.assert_array_equal(x.reshape(360, -1), expected)
    np.testing.assert_array_equal(y, np.concatenate([labels for _, labels in images.values()]))


def test_the_task_is_built_of_them_and_can_be_valued(tmp_path, monkeypatch, images):
    pickled(tmp_path, images)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    spec = dataclasses.replace(cifar10_resnet.TASK, n_validation=100, n_test=100)
    task = spec.build("cifar10-resnet", seed=0, n_train=40)
    assert task.train.x.shape == (40, 3, 32, 32)
    assert len(task.flipped) == 4
    assert METHODS["knn"](task, 0).values.shape == (40,)


def test_without_images_it_says_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"needs CIFAR-10, and '{tmp_path}' holds neither.*{FOLDER}"):
        tasks.load("cifar10-resnet")


def test_files_that_are_no_batches_are_refused(tmp_path, monkeypatch, images):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    binary(tmp_path, images)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"test_batch.bin' is no batch of CIFAR-10: 5 bytes"):
        cifar10_resnet.dataset()


class Harm:
    def __reduce__(self):
        return exec, ("print('harm')",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch, images, capsys):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    pickled(tmp_path, images)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=r"names nothing but arrays, got builtins.exec"):
        cifar10_resnet.dataset()
    assert "harm" not in capsys.readouterr().out


def test_the_embedded_one_learns_and_its_samples_are_alone():
    task = tasks.load("mnist-resnet")
    assert (task.n_train, len(task.flipped)) == (1000, 100)
    model = task.model()
    torch.testing.assert_close(model(task.train.x[:3])[1:2], model(task.train.x[1:2]), rtol=1e-4, atol=1e-5)
    optimizer = task.optimizer(model)
    before = float(task.loss(model, task.validation).detach())
    for index in task.batches()[:60]:
        task.train_on(model, optimizer, index)
    assert float(task.loss(model, task.validation).detach()) < 0.8 * before
