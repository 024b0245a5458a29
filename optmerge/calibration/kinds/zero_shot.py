"""Images for CLIP models, and the names of their classes, which make the head.

reader = ZeroShotReader(Task("pets", TaskConfig(expert="pets", data="pets", classes=["cat", "dog"]), config, processor))
class_names("pets", spec, folder)         # {"cat": "cat", "dog": "dog"}: label value -> name, in the order of the head
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from optmerge.calibration.images import class_folders
from optmerge.calibration.kinds.image_classification import ImageReader
from optmerge.calibration.labels import HeadLabels
from optmerge.calibration.reader import Task
from optmerge.config.tasks import TaskConfig
from optmerge.errors import ConfigError
from optmerge.models.architecture import Kind


class ZeroShotReader(ImageReader):
    """Images whose labels are indices or values of the classes that the task names."""

    kind: ClassVar[Kind] = "zero-shot-image-classification"
    takes: ClassVar[frozenset[str]] = frozenset({"classes"})

    def __init__(self, task: Task) -> None:
        names = class_names(task.name, task.spec, task.folder)
        super().__init__(task, HeadLabels(task, {value: index for index, value in enumerate(names)}))


def class_names(task: str, spec: TaskConfig, folder: Path) -> dict[str, str]:
    """Label value -> name of the class, in the order of the head's classes.

    Args:
        task: The task's name, for messages.
        spec: Its settings.
        folder: What the path of its data is relative to.

    Raises:
        ConfigError: There are fewer than two, or a name twice.
    """
    if isinstance(spec.classes, dict):
        names = dict(spec.classes)
    elif spec.classes is not None:
        names = {name: name for name in spec.classes}
    else:
        data = folder / Path(spec.data).expanduser()
        names = {name: name.replace("_", " ") for name in (class_folders(data) if data.is_dir() else [])}
    said = list(names.values()) if spec.classes is None or isinstance(spec.classes, dict) else spec.classes
    twice = next((name for name in said if said.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"tasks.{task}.classes has {twice!r} twice; every class needs a name of its own.")
    if len(names) < 2:
        found = f"there is only {next(iter(names))!r}" if names else "there are none"
        raise ConfigError(
            f"tasks.{task}.classes: a zero-shot head is made of the names of at least two classes, and {found}. List "
            "them in the order of their labels, or as label: name; a folder of images with a sub-folder per class "
            "needs no list."
        )
    return names
