from __future__ import annotations

import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from optmerge.calibration.sources import is_local, read_rows
from optmerge.errors import DataError

TEXTS = ["a, good film", 'a "bad"\nfilm', "null", "NA"]


def refused(message: str) -> pytest.RaisesExc[DataError]:
    return pytest.raises(DataError, match=re.escape(message))


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import csv
    import json

    rows = [{"text": text, "label": str(i)} for i, text in enumerate(TEXTS)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    for name, delimiter in (("d.csv", ","), ("d.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["text", "label"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("d.jsonl", "d.json", "d.csv", "d.tsv", "d.parquet"):
        read = read_rows(name, {"text"}, relative_to=tmp_path)
        assert read.columns == {"text": TEXTS}, name
        assert read.available == ("text", "label"), name
        assert len(read.numbers) == len(TEXTS), name


def test_text_files_have_one_column_and_skip_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one\n\n two\n")
    read = read_rows("d.txt", {"text"}, relative_to=tmp_path)
    assert read.columns["text"] == ["one", " two"]
    assert list(read.numbers) == [1, 3]


def test_a_byte_order_mark_and_long_fields_are_read(tmp_path: Path) -> None:
    import csv

    limit = csv.field_size_limit()
    long = "x" * 200_000
    (tmp_path / "d.csv").write_text(f"text,label\n{long},1\n", encoding="utf-8-sig")
    assert read_rows("d.csv", {"text"}, relative_to=tmp_path).columns["text"] == [long]
    assert csv.field_size_limit() == limit
    (tmp_path / "d.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8-sig")
    assert read_rows("d.jsonl", {"text"}, relative_to=tmp_path).columns["text"] == ["a\u2028b"]


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "sentiment.jsonl").touch()
    with refused("Did you mean 'sentiment.jsonl'?"):
        read_rows("sentiments.jsonl", {"text"}, relative_to=tmp_path)
    with refused(f"the folder {tmp_path / 'nowhere'} does not exist"):
        read_rows("nowhere/sentiment.jsonl", {"text"}, relative_to=tmp_path)
    with refused("is a folder; name one data file") as caught:
        read_rows(str(tmp_path), {"text"}, relative_to=tmp_path)
    assert "It holds sentiment.jsonl." in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "d.jsonl, line 3 is not valid JSON"),
        ("d.jsonl", b'{"text": "a"}\n["b"]\n', "d.jsonl, line 2 is a list; expected an object"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "d.jsonl, line 2 is not valid JSON"),
        ("d.json", b'{"text": "a"}\n{"text": "b"}\n', "If it has one object a line, call it .jsonl"),
        ("d.json", b'{"text": ["a"]}', "holds an object at the top; expected a list of objects"),
        ("d.json", b'[{"text": "a"}, 3]', "d.json, element 2 is a number; expected an object"),
        ("d.csv", b"text,label\na,1\nb,c,2\n", "d.csv, line 3: the row has 3 fields and the header 2"),
        ("d.csv", b"text,text\na,1\n", "names the column 'text' twice"),
        ("d.csv", b'text,label\n"a,1\n', "is not valid CSV"),
        ("d.csv", b"text,label\n\xff\xfe,1\n", "is not UTF-8 text (byte"),
        ("d.parquet", b"PAR1 nothing", "is not a readable Parquet file"),
        ("d.xlsx", b"", "ends in .xlsx; expected one of .jsonl"),
    ],
)
def test_damage_is_reported_where_it_is(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(message):
        read_rows(name, {"text"}, relative_to=tmp_path)


def test_what_is_a_file_and_what_is_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    local = {
        "data/films.jsonl": True,
        "data/films": True,  # the folder exists, so a file in it was meant
        "./films": True,
        "somebody/films": False,
        "somebody/films@main:train": False,
        "imdb:test": False,
    }
    assert {text: is_local(text, relative_to=tmp_path) for text in local} == local


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
def test_an_unknown_hub_data_set_is_refused(tmp_path: Path) -> None:
    with refused("The data set 'nobody/nothing:train' cannot be loaded from the hub") as caught:
        read_rows("nobody/nothing:train", {"text"}, relative_to=tmp_path)
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_a_hub_data_set_gives_its_columns_and_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    asked = []

    def load_dataset(name: str, *, split: str | None, revision: str | None) -> object:
        asked.append((name, split, revision))
        return made if split else datasets.DatasetDict({"validation": made, "test": made})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read = read_rows("somebody/films@v1:test", {"text", "label"}, relative_to=tmp_path)
    assert asked == [("somebody/films", "test", "v1")]
    assert read.columns == {"text": ["a", "b"], "label": [1, 0]}
    assert read.class_names == {"label": ["no", "yes"]}
    assert "label" not in read_rows("somebody/films:test", {"text"}, relative_to=tmp_path).columns
    with refused("has the splits validation, test; choose one, as in 'somebody/films:validation'"):
        read_rows("somebody/films", {"text"}, relative_to=tmp_path)


def saved_data(folder: Path) -> Path:
    """Two texts with tags, saved as ``datasets`` does it."""
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "CITY"]))
    features = datasets.Features({"text": datasets.Value("string"), "tags": tags})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "tags": [[1], [0]]}, features=features)
    made.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"validation": made, "test": made}).save_to_disk(str(folder / "several"))
    return folder


def test_saved_folders_and_arrow_files(tmp_path: Path) -> None:
    saved_data(tmp_path)
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    for name in ("one", "several/test", f"one/{arrow.name}"):
        assert is_local(name, relative_to=tmp_path)
        read = read_rows(name, {"text", "tags"}, relative_to=tmp_path)
        assert read.columns == {"text": ["a", "b"], "tags": [[1], [0]]}, name
        assert list(read.numbers) == [1, 2]
        assert read.class_names == {"tags": ["O", "CITY"]}
        assert read_rows(name, {"text"}, relative_to=tmp_path).columns == {"text": ["a", "b"]}
    with refused("has the splits validation, test; choose one, as in 'several/validation'"):
        read_rows("several", {"text"}, relative_to=tmp_path)


def test_damaged_arrow_files_and_folders(tmp_path: Path) -> None:
    saved_data(tmp_path)
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(b"no arrow")
    with refused("is not a readable Arrow file"):
        read_rows(f"one/{arrow.name}", {"text"}, relative_to=tmp_path)
    with refused(f"{tmp_path / 'one'} is not a readable data set"):
        read_rows("one", {"text"}, relative_to=tmp_path)
