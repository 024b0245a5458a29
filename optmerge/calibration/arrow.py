"""Rows through the ``datasets`` library: data sets of the hub, Arrow files, and folders that it saved.

rows = read_hub("imdb:test", {"text"})                         # honours HF_HUB_OFFLINE
rows = read_arrow(Path("data/films.arrow"), {"text"})
rows = read_saved(Path("data/films"), {"text"})                # what save_to_disk wrote
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from optmerge.calibration.rows import Rows
from optmerge.errors import DataError

HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+?))?(?::(?P<split>[\w.\[\]%:-]+))?"
)
_ONE, _SEVERAL = "state.json", "dataset_dict.json"  # what save_to_disk writes beside a data set, and beside its splits


def is_saved(path: Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` wrote."""
    return (path / _ONE).is_file() or (path / _SEVERAL).is_file()


def read_hub(text: str, wanted: Collection[str]) -> Rows:
    """Read ``id[@revision][:split]`` from the hub or its cache.

    Raises:
        DataError: It cannot be had, or has several splits none of which is ``train`` or chosen.
    """
    import datasets

    match = HUB_ID.fullmatch(text)
    assert match is not None, "what is no id is a path"
    name, revision, split = match["id"], match["revision"], match["split"]
    try:
        loaded = datasets.load_dataset(name, split=split, revision=revision)
    except Exception as problem:  # whatever the hub, the network or a builder raises means: this data cannot be had
        raise DataError(
            f"The data set {text!r} cannot be loaded from the hub ({_reason(problem)}). It is "
            f"no file beside the search file. Check the id (https://huggingface.co/datasets/{name}), log in with "
            "`hf auth login` if it is gated, or name a local file; with HF_HUB_OFFLINE set only cached data sets load."
        ) from None
    if isinstance(loaded, dict):
        if "train" not in loaded and len(loaded) > 1:
            raise DataError(
                f"The data set {text!r} has the splits {', '.join(loaded)}; choose one, as in "
                f"'{name}:{next(iter(loaded))}'."
            )
        loaded = loaded.get("train", next(iter(loaded.values())))
    return _rows(text, loaded, wanted)


def read_arrow(path: Path, wanted: Collection[str]) -> Rows:
    """Read an Arrow file.

    Raises:
        DataError: It is damaged.
    """
    import datasets

    try:
        loaded = datasets.Dataset.from_file(str(path))
    except Exception as problem:  # pyarrow and datasets have many names for a file that is no Arrow file
        raise DataError(
            f"{path} is not a readable Arrow file ({_reason(problem)}). Save it again, with save_to_disk or to_parquet."
        ) from None
    return _rows(str(path), loaded, wanted)


def read_saved(path: Path, wanted: Collection[str]) -> Rows:
    """Read a folder that ``save_to_disk`` wrote; of several splits the one called ``train``.

    Raises:
        DataError: It is damaged, or has several splits none of which is ``train``.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as problem:  # as above
        raise DataError(f"{path} is not a readable data set ({_reason(problem)}). Save it again.") from None
    if isinstance(loaded, dict):
        if "train" not in loaded and len(loaded) > 1:
            raise DataError(
                f"{path} has the splits {', '.join(loaded)}; choose one, as in '{path.name}/{next(iter(loaded))}'."
            )
        loaded = loaded.get("train", next(iter(loaded.values())))
    return _rows(str(path), loaded, wanted)


def _reason(problem: Exception) -> str:
    name = type(problem).__name__
    return f"{name}: {(str(problem).strip().splitlines() or [name])[0]}"


def _rows(source: str, loaded: Any, wanted: Collection[str]) -> Rows:
    import datasets

    available = tuple(loaded.column_names)
    present = [column for column in wanted if column in available]
    kept = loaded.select_columns(present)
    for column in present:
        if isinstance(kept.features[column], datasets.Image):  # the file's bytes, to be decoded one at a time
            kept = kept.cast_column(column, datasets.Image(decode=False))
    names = {column: _class_names(kept.features[column]) for column in present}
    return Rows(
        source,
        available,
        {column: list(kept[column]) for column in present},
        range(1, len(loaded) + 1),
        {column: list(known) for column, known in names.items() if known is not None},
    )


def _class_names(feature: Any) -> Any:
    """The names of a feature's classes, or of a list's elements' classes; None if it has none."""
    return getattr(getattr(feature, "feature", feature), "names", None)
