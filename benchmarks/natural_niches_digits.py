"""Natural niches from scratch on the 8x8 digits: M2N2 beside a plain GA, as in the paper's figure.

    .venv/bin/python -m benchmarks.natural_niches_digits --evaluations 50000 --seeds 0 1

scikit-learn's ``load_digits`` (1,797 images of 8x8 pixels from 0 to 16, the first 80 % for training, not shuffled), an
MLP 64-256-10 of 19,210 parameters, and the driver by ask and tell: every parameter is a variable and a group of its
own, two random networks are the seeds, mutation is on. The GA is the same driver without competition and attraction.
What is reported is the archive's best on training images, by its accuracy on the test images. Needs scikit-learn.

The released code of Abrantes, Lange & Tang (2025, arXiv 2508.16204) calls this data set MNIST; its figure shows about
87 % for M2N2 and 68 % for the GA after 50,000 evaluations, means of ten seeds.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from optmerge.config.natural_niches import NaturalNichesConfig
from optmerge.drivers.natural_niches import NaturalNichesDriver
from optmerge.drivers.variables import Variables
from optmerge.records import OBJECTIVE, Evaluation, Vector

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Hits = Callable[[Vector], Vector]

SIZES = (64, 256, 10)
DEVIATION = 0.01  # of the seeds' weights, and of mutation
BOUND = 10.0  # far from anything that a search comes to
SIDES = {
    "M2N2": NaturalNichesConfig(mutation=DEVIATION, known=1),
    "GA": NaturalNichesConfig(mutation=DEVIATION, known=1, alpha=0.0, attraction=False),
}


def digits() -> tuple[Images, Labels, Images, Labels]:
    """Training images and labels, then those for the test; pixels from 0 to 16, so that biases weigh little."""
    data = importlib.import_module("sklearn.datasets").load_digits()  # it has no types
    images = data.data.astype(np.float32)
    labels = data.target.astype(np.int64)
    cut = int(0.8 * len(images))
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


def judge(images: Images, labels: Labels) -> Hits:
    """A function of an MLP's parameters: 1 for every image whose label it predicts, else 0."""
    inputs, hidden, classes = SIZES
    ends = np.cumsum([inputs * hidden, hidden, hidden * classes])

    def hits(vector: Vector) -> Vector:
        first, bias, second, shift = np.split(vector.astype(np.float32), ends)
        layer = np.maximum(images @ first.reshape(inputs, hidden) + bias, 0.0)
        logits = layer @ second.reshape(hidden, classes) + shift
        return np.asarray(logits.argmax(axis=1) == labels, dtype=np.float64)

    return hits


def search(config: NaturalNichesConfig, train: Hits, seed: int, evaluations: int) -> tuple[Vector, float]:
    """The archive's best parameters after ``evaluations``, and their accuracy on the training images."""
    inputs, hidden, classes = SIZES
    dimension = inputs * hidden + hidden + hidden * classes + classes
    start, other = DEVIATION * np.random.default_rng(seed).standard_normal((2, dimension))
    names = tuple(map(str, range(dimension)))
    bounds = np.full(dimension, BOUND)
    driver = NaturalNichesDriver(
        config,
        Variables(names, -bounds, bounds, start, known=(other,)),
        seed=np.random.SeedSequence(seed),
        fit_sizes={},
        budget=evaluations,
    )
    done = 0
    while done < evaluations:
        candidates = driver.ask()[: evaluations - done]
        told = []
        for candidate in candidates:
            hit = train(candidate.vector)
            told.append(Evaluation(1.0 - float(hit.mean()), per_example={"digits": {OBJECTIVE: 1.0 - hit}}))
        driver.tell(candidates, told)
        done += len(candidates)
    archive = driver.state_dict()
    values, vectors = np.asarray(archive["values"]), np.asarray(archive["vectors"])
    return vectors[values.argmin()], 1.0 - float(values.min())


def main() -> None:
    """Run both sides on every seed, and print a line each."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--evaluations", type=int, default=50_000)
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    options.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    chosen = options.parse_args()
    images, labels, test_images, test_labels = digits()
    train, test = judge(images, labels), judge(test_images, test_labels)
    for side in chosen.sides:
        for seed in chosen.seeds:
            begun = time.perf_counter()
            vector, accuracy = search(SIDES[side], train, seed, chosen.evaluations)
            print(
                f"{side} seed {seed}: train {accuracy:.3f}, test {test(vector).mean():.3f} after "
                f"{chosen.evaluations} evaluations, {time.perf_counter() - begun:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
