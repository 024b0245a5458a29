"""Rows of calibration data, out of a local file or a hub data set.

Only the columns that are asked for are kept, so a label column that nobody may read never leaves this module.

    rows = read_rows("zoo/data/topic.jsonl", {"text"}, relative_to=Path())
    rows.columns["text"][0], rows.numbers[0]

Files of text are read with the standard library (Parquet with pyarrow): values arrive as they are written, damage is
reported with its line, and nothing is cached or downloaded. Hub data sets, Arrow files and folders that ``datasets``
saved are read by it (see `arrow`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optmerge.calibration.arrow import HUB_ID, is_saved, read_arrow, read_hub, read_saved
from optmerge.calibration.images import image_files, is_image_folder
from optmerge.calibration.rows import Rows
from optmerge.errors import DataError, did_you_mean

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".arrow", ".txt")
_LONGEST_FIELD = 2**31 - 1  # of a CSV file, in characters; the csv module's own limit is 131,072


def is_local(text: str, *, relative_to: Path) -> bool:
    """Whether ``text`` means a file: it exists, ends like one, lies in a folder that exists, or is no hub id."""
    path = relative_to / Path(text).expanduser()
    in_known_folder = "/" in text and path.parent.is_dir()
    return path.exists() or path.suffix.lower() in SUFFIXES or in_known_folder or not HUB_ID.fullmatch(text)


def read_rows(text: str, wanted: Collection[str], *, relative_to: Path) -> Rows:
    """Read the wanted columns of a file, a folder of images, one that ``save_to_disk`` wrote, or a hub data set.

    Args:
        text: Path (relative to ``relative_to``), or hub id: ``id[@revision][:split]``.
        wanted: Columns to keep; those that the source lacks are missing from ``Rows.columns``.
        relative_to: Where relative paths start.

    Raises:
        DataError: The file or data set is missing, of an unknown kind, or damaged (with the line).
    """
    if not is_local(text, relative_to=relative_to):
        return read_hub(text, wanted)
    path = relative_to / Path(text).expanduser()
    if is_saved(path):
        return read_saved(path, wanted)
    if is_image_folder(path):
        return _read_image_folder(path, wanted)
    if not path.is_file():
        raise DataError(_missing(path))
    suffix = path.suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            return _read_json_lines(path, wanted)
        if suffix == ".json":
            return _read_json(path, wanted)
        if suffix in (".csv", ".tsv", ".tab"):
            return _read_csv(path, wanted, delimiter="," if suffix == ".csv" else "\t")
        if suffix == ".parquet":
            return _read_parquet(path, wanted)
        if suffix == ".arrow":
            return read_arrow(path, wanted)
        if suffix == ".txt":
            return _read_text(path, wanted)
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{path} is not UTF-8 text (byte {problem.start}: {problem.reason}). Convert it to UTF-8."
        ) from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}.") from None
    raise DataError(f"{path} ends in {suffix or 'nothing'}; expected one of {', '.join(SUFFIXES)}.")


def _missing(path: Path) -> str:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        listing = f" It holds {', '.join(inside[:5])}." if inside else ""
        return f"{path} is a folder; name one data file ({', '.join(SUFFIXES)}).{listing}"
    if not path.parent.is_dir():
        reason = f": the folder {path.parent} does not exist"
        return f"There is no data file {path}{reason}. Paths are relative to the search file."
    beside = [file.name for file in path.parent.iterdir() if file.is_file()]
    near = did_you_mean(path.name, beside)
    return f"There is no data file {path}.{near} Paths are relative to the search file."


def _gather(
    source: str, objects: list[tuple[int, dict[str, Any]]], wanted: Collection[str], names: dict[str, None]
) -> Rows:
    columns = {name: [row.get(name) for _, row in objects] for name in wanted if name in names}
    return Rows(source, tuple(names), columns, [number for number, _ in objects])


def _read_json_lines(path: Path, wanted: Collection[str]) -> Rows:
    objects: list[tuple[int, dict[str, Any]]] = []
    names: dict[str, None] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not text:
                    continue
                row = json.loads(text)
            except (json.JSONDecodeError, UnicodeDecodeError) as problem:
                raise DataError(
                    f"{path}, line {number} is not valid JSON: {problem}. Every line must be one JSON object, "
                    'such as {"text": "..."}; mend or remove that line.'
                ) from None
            objects.append((number, _kept(row, wanted, names, f"{path}, line {number}")))
    return _gather(str(path), objects, wanted, names)


def _read_json(path: Path, wanted: Collection[str]) -> Rows:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as problem:
        raise DataError(f"{path} is not valid JSON: {problem}. If it has one object a line, call it .jsonl.") from None
    if not isinstance(content, list):
        raise DataError(
            f"{path} holds {_kind(content)} at the top; expected a list of objects, "
            "or one object a line in a .jsonl file."
        )
    names: dict[str, None] = {}
    objects = [
        (number, _kept(row, wanted, names, f"{path}, element {number}")) for number, row in enumerate(content, 1)
    ]
    return _gather(str(path), objects, wanted, names)


def _kept(row: object, wanted: Collection[str], names: dict[str, None], where: str) -> dict[str, Any]:
    """The wanted fields of one object; every field's name is noted in ``names``."""
    if not isinstance(row, dict):
        raise DataError(f'{where} is {_kind(row)}; expected an object with named fields, such as {{"text": "..."}}.')
    names.update(dict.fromkeys(row))
    return {name: row[name] for name in wanted if name in row}


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_csv(path: Path, wanted: Collection[str], *, delimiter: str) -> Rows:
    columns: dict[str, list[Any]] = {}
    numbers: list[int] = []
    with path.open(encoding="utf-8-sig", newline="") as lines, _long_fields():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise DataError(f"{path} names the column {repeated[0]!r} twice; rename one of them.")
            places = {name: names.index(name) for name in wanted if name in names}
            columns = {name: [] for name in places}
            for row in reader:
                if not row:
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{path}, line {reader.line_num}: the row has {len(row)} fields and the header {len(names)} "
                        f"({', '.join(names[:8])}). Quote fields that contain the delimiter {delimiter!r}."
                    )
                numbers.append(reader.line_num)
                for name, place in places.items():
                    columns[name].append(row[place])
        except csv.Error as problem:
            raise DataError(f"{path}, line {reader.line_num} is not valid CSV: {problem}.") from None
    return Rows(str(path), tuple(names), columns, numbers)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read long documents, and leave its limit as it was."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path, wanted: Collection[str]) -> Rows:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        names = tuple(parquet.read_schema(path).names)
        present = [name for name in wanted if name in names]
        table = parquet.read_table(path, columns=present)
        count = parquet.read_metadata(path).num_rows
    except pyarrow.ArrowException as problem:
        raise DataError(f"{path} is not a readable Parquet file: {problem}") from None
    return Rows(str(path), names, {name: table.column(name).to_pylist() for name in present}, range(1, count + 1))


def _read_text(path: Path, wanted: Collection[str]) -> Rows:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    columns = {"text": [line for _, line in filled]} if "text" in wanted else {}
    return Rows(str(path), ("text",), columns, [number for number, _ in filled])


def _read_image_folder(path: Path, wanted: Collection[str]) -> Rows:
    """A folder of images, each of the class that its own folder is called after."""
    files = image_files(path)
    found: dict[str, list[Any]] = {
        "image": [str(file.absolute()) for file, _ in files],
        "label": [name for _, name in files],
    }
    columns = {name: values for name, values in found.items() if name in wanted}
    return Rows(str(path), tuple(found), columns, range(1, len(files) + 1))
