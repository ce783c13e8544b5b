"""A thousand MNIST digits, a tenth of them with a wrong label, and a residual network with group norm.

In form this is the setting of the paper's Table 4 (*Data Shapley in One Training Run*, arXiv 2406.11011): a thousand
images of ten classes, of which a tenth is mislabelled, a residual network, several epochs; there the images are those
of CIFAR-10 (``cifar10-resnet``, for whoever has them).
"""

import dataclasses

from tasks.architectures import small_resnet
from tasks.catalog import mnist_cnn
from tasks.recipe import Recipe

TASK = dataclasses.replace(
    mnist_cnn.TASK,
    architecture=small_resnet,
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.1, batch_size=20, epochs=5),
        "momentum": Recipe("sgd", learning_rate=0.02, batch_size=20, epochs=5, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.003, batch_size=20, epochs=5, weight_decay=0.01),
    },
    n_train=1000,
    summary="28 x 28 MNIST digits, 1000 for training, a residual network with group norm",
    large=True,
)
