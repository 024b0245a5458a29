"""Zoos of models that see: image classifiers, or CLIP towers, and folders of images with a sub-folder per class.

settings = image_settings(make_image_zoo(tmp_path, "vit"), budget={"evaluations": 5})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tests.tiny import pictures, save_clip, save_family
from tests.zoo import zoo_settings

CLASSES = ("w10", "w20_w30", "w40")  # a folder each; words of the tiny tokenizer
OTHERS = ("w40", "w10", "w20_w30")  # how the second expert numbers them, where experts have heads of their own
IMAGES = 72


def make_image_zoo(folder: Path, kind: str, *, own_heads: bool = False, whole: bool = False) -> Path:
    """base/, one/, two/ and the image folders pictures-one/, pictures-two/ below ``folder``.

    ``kind`` is ``vit``, or ``clip``. With ``own_heads`` the experts of ``vit`` know the classes in different orders;
    those of ``clip`` are vision towers alone, or ``whole`` models.
    """
    if kind == "clip":
        save_clip(folder, towers=not whole, scale=0.1)
    else:

        def name_classes(who: str, model: PreTrainedModel) -> None:
            names = dict(enumerate(OTHERS if own_heads and who == "two" else CLASSES))
            model.config.id2label, model.config.label2id = names, {name: index for index, name in names.items()}

        save_family(kind, folder, scale=0.3, change=name_classes)
    for number, name in enumerate(("one", "two")):
        for place, picture in enumerate(pictures(IMAGES, seed=number)):
            into = folder / f"pictures-{name}" / CLASSES[place % len(CLASSES)]
            into.mkdir(parents=True, exist_ok=True)
            picture.save(into / f"{place}.png")
    return folder


def image_settings(zoo: Path, **changes: Any) -> dict[str, Any]:
    """A search file's content over an image zoo; keyword arguments replace keys."""
    tasks = {
        name: {"expert": name, "data": str(zoo / f"pictures-{folder}"), "label": "label"}
        for name, folder in (("a", "one"), ("b", "two"))
    }
    splits = {"fit": 24, "select": 16, "report": 24}
    return zoo_settings(zoo, tasks=tasks, splits=splits, **changes)
