from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from optmerge.calibration import Calibration
from optmerge.calibration.splits import content_key
from optmerge.config.tasks import SplitsConfig, TemplateConfig
from optmerge.errors import ConfigError, DataError
from optmerge.records import SplitName

from .conftest import Loader, write_lines

SPLITS: tuple[SplitName, ...] = ("fit", "select", "report")
LABELLED = frozenset(SPLITS)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(calibration: Calibration) -> list[object]:
    return [
        [(batch.inputs["input_ids"].tolist(), batch.positions.tolist()) for batch in split.batches(batch_tokens=64)]
        for task in calibration.tasks.values()
        for split in task.splits.values()
    ]


def test_splits_have_their_sizes_and_do_not_overlap(films: Path, load: Loader) -> None:
    task = load().tasks["films"]
    assert {name: task.splits[name].size for name in SPLITS} == {"fit": 20, "select": 10, "report": 15}
    assert len({key for split in task.splits.values() for key in split.keys}) == 45
    assert task.num_labels == 2
    assert task.expert == "critic"


def test_the_order_of_the_file_changes_nothing(films: Path, load: Loader) -> None:
    before = load(label="label", keep_labels=LABELLED)
    rows = rows_of(films)
    random.Random(1).shuffle(rows)
    write_lines(films, rows)
    after = load(label="label", keep_labels=LABELLED)
    assert after.fingerprint() == before.fingerprint()
    assert contents(after) == contents(before)


def test_report_and_select_do_not_depend_on_the_size_of_fit(films: Path, load: Loader) -> None:
    small = load(splits=SplitsConfig(fit=5, select=10, report=15)).tasks["films"].splits
    large = load(splits=SplitsConfig(fit=35, select=10, report=15)).tasks["films"].splits
    assert small["report"].keys == large["report"].keys
    assert small["select"].keys == large["select"].keys
    assert small["fit"].keys == large["fit"].keys[:5]


@pytest.mark.parametrize("change", ["permuted", "deleted"])
def test_an_unlabelled_load_never_sees_labels(films: Path, load: Loader, change: str) -> None:
    before = load(label="label")
    rows = rows_of(films)
    labels = [row.pop("label") for row in rows]
    if change == "permuted":
        random.Random(2).shuffle(labels)
        rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    write_lines(films, rows)
    after = load(label="label")
    assert after.fingerprint() == before.fingerprint()
    assert contents(after) == contents(before)
    for split in after.tasks["films"].splits.values():
        assert not split.has_labels
        assert all(batch.targets is None for batch in split.batches(batch_tokens=64))


def test_labels_are_kept_for_the_report_alone(films: Path, load: Loader) -> None:
    calibration = load(label="label", keep_labels=frozenset({"report"}))
    splits = calibration.tasks["films"].splits
    assert [splits[name].has_labels for name in SPLITS] == [False, False, True]
    assert splits["fit"].batches(batch_tokens=64)[0].targets is None
    for batch in splits["report"].batches(batch_tokens=64):
        assert batch.targets is not None
        good = batch.inputs["input_ids"][:, 2] == 4  # the word "good"
        assert torch.equal(batch.targets, good.long())
    assert any("dropped from fit" in note for note in calibration.notes)


def test_labels_of_fit_change_nothing_when_the_report_alone_may_have_them(films: Path, load: Loader) -> None:
    keep = frozenset[SplitName]({"report"})
    before = load(label="label", keep_labels=keep)
    reported = set(before.tasks["films"].splits["report"].keys)
    rows = rows_of(films)
    for row in rows:
        if content_key(str(row["text"]), None) not in reported:
            row["label"] = "nobody knows this label"
    write_lines(films, rows)
    after = load(label="label", keep_labels=keep)
    assert after.fingerprint() == before.fingerprint()


def test_labels_by_the_tasks_own_mapping_and_as_numbers(films: Path, load: Loader) -> None:
    mapped = load(label="label", keep_labels=LABELLED, labels={"yes": 0, "no": 1})
    plain = load(label="label", keep_labels=LABELLED)
    numbered = rows_of(films)
    for row in numbered:
        row["label"] = int(row["label"] == "yes")
    write_lines(films, numbered)
    counted = load(label="label", keep_labels=LABELLED, head={"LABEL_0": 0, "LABEL_1": 1})
    for split in SPLITS:
        ours = [c.tasks["films"].splits[split].batches(batch_tokens=4096)[0].targets for c in (plain, mapped, counted)]
        assert torch.equal(ours[0], 1 - ours[1])
        assert torch.equal(ours[0], ours[2])


@pytest.mark.parametrize("value", ["--1", "²", "1-", "-"])
def test_what_only_looks_like_a_number_is_no_label(films: Path, load: Loader, value: str) -> None:
    write_lines(films, [{**row, "label": value} for row in rows_of(films)])
    with pytest.raises(DataError, match=f"row [0-9]+: the label '{value}' is not among the expert's head"):
        load(label="label", keep_labels=LABELLED)


def test_duplicates_are_left_out_whatever_their_order(tmp_path: Path, load: Loader) -> None:
    rows = [{"text": f"n{i} film", "label": "no"} for i in range(12)]
    doubled = [*rows, {"text": "n3 film", "label": "yes"}, rows[5]]
    splits = SplitsConfig(fit=4, select=4, report=4)
    options = {"splits": splits, "label": "label", "keep_labels": LABELLED}
    write_lines(tmp_path / "films.jsonl", doubled)
    first = load(**options)
    write_lines(tmp_path / "films.jsonl", doubled[::-1])
    second = load(**options)
    assert first.fingerprint() == second.fingerprint()
    assert "films: 2 exact duplicates are left out." in first.notes
    assert "films: 1 texts occur with more than one label." in first.notes


def test_shares_and_limit(films: Path, load: Loader) -> None:
    shares = load(splits=SplitsConfig(fit=0.5, select=0.25, report=0.25))
    assert [shares.tasks["films"].splits[name].size for name in SPLITS] == [30, 15, 15]
    limited = load(limit=4)
    whole = load()
    for name in SPLITS:
        few = limited.tasks["films"].splits[name]
        assert few.keys == whole.tasks["films"].splits[name].keys[:4]
    assert limited.fit_sizes() == {"films": 4}
    assert limited.fingerprint() != whole.fingerprint()


def test_a_pair_of_texts_has_two_segments(tmp_path: Path, load: Loader) -> None:
    write_lines(tmp_path / "films.jsonl", [{"a": f"n{i}", "b": "good film"} for i in range(6)])
    calibration = load(text="a", text_pair="b", splits=SplitsConfig(fit=2, select=2, report=2))
    batch = calibration.tasks["films"].splits["fit"].batches(batch_tokens=64)[0]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert batch.inputs["input_ids"].shape == (2, 6)


def test_rows_without_text_are_left_out_and_noted(tmp_path: Path, load: Loader) -> None:
    write_lines(tmp_path / "films.jsonl", [{"text": f"n{i}"} for i in range(6)] + [{"text": "  "}, {"text": None}, {}])
    calibration = load(splits=SplitsConfig(fit=2, select=2, report=2))
    assert calibration.notes == ["films: 3 of 9 rows have no text and are left out."]


# Each mistake has its own message.


def refused(message: str) -> pytest.RaisesExc[DataError]:
    return pytest.raises(DataError, match=re.escape(message))


def test_too_few_examples(films: Path, load: Loader) -> None:
    write_lines(films, [*rows_of(films), rows_of(films)[0]])
    with refused(
        "the splits need 80 examples (fit 20, select 10, report 50) and films.jsonl has 60 distinct"
    ) as caught:
        load(splits=SplitsConfig(fit=20, select=10, report=50))
    assert "Lower splits.report to 30 or less" in str(caught.value)
    assert "1 exact duplicates are left out" in str(caught.value)
    with refused("Lower splits (shares such as 0.2 adapt to the data)"):
        load(splits=SplitsConfig(fit=900, select=900, report=901))
    with refused("splits.select is 0.001, which is no example at all of the 60 in films.jsonl"):
        load(splits=SplitsConfig(fit=2, select=0.001, report=2))
    with refused("Lower splits.fit to 34 or less"):
        load(splits=SplitsConfig(fit=0.8, select=0.25, report=11))


def test_missing_column(films: Path, load: Loader) -> None:
    with refused("has no column 'txt'; its columns are 'text', 'label'. Did you mean 'text'?"):
        load(text="txt")


def test_all_texts_empty(tmp_path: Path, load: Loader) -> None:
    write_lines(tmp_path / "films.jsonl", [{"text": ""}, {"text": " "}])
    with refused("has 2 rows, and the text in column 'text' of every one is empty"):
        load()


def test_no_rows(tmp_path: Path, load: Loader) -> None:
    (tmp_path / "films.jsonl").write_text("\n")
    with refused("holds no rows"):
        load()


def test_text_that_is_no_text(tmp_path: Path, load: Loader) -> None:
    write_lines(tmp_path / "films.jsonl", [{"text": "n1"}, {"text": ["n2"]}])
    with refused("films.jsonl, row 2: column 'text' holds a list; expected text"):
        load()


def test_unknown_label(films: Path, load: Loader) -> None:
    with refused("the label 'no' is not among labels: 'not', 'yes'. Did you mean 'not'?"):
        load(label="label", keep_labels=LABELLED, labels={"not": 0, "yes": 1})
    with refused("the label 'no' is not among the expert's head: 'nope', 'yes'"):
        load(label="label", keep_labels=LABELLED, head={"nope": 0, "yes": 1})
    with refused("the label 'yes' means class 5, and the expert's head has the classes 0 to 1"):
        load(label="label", keep_labels=LABELLED, labels={"no": 0, "yes": 5})


def test_label_outside_the_head_and_missing_label(films: Path, load: Loader) -> None:
    rows = [{**row, "label": -1} for row in rows_of(films)]
    write_lines(films, rows)
    with refused("the label '-1' means class -1"):
        load(label="label", keep_labels=LABELLED)
    write_lines(films, [{**row, "label": None} for row in rows])
    with refused("has no value in the label column 'label'"):
        load(label="label", keep_labels=LABELLED)


def test_absent_label_column(films: Path, load: Loader) -> None:
    calibration = load(label="lable", keep_labels=frozenset({"report"}))
    assert not calibration.tasks["films"].splits["report"].has_labels
    assert calibration.notes == ["films: there is no label column 'lable'; the report shows agreement with the expert."]
    with refused("the objective reads labels") as caught:
        load(label="lable", keep_labels=LABELLED)
    assert "Did you mean 'label'?" in str(caught.value)
    with refused("tasks.films.label: missing; the objective reads labels"):
        load(label=None, keep_labels=LABELLED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "label", "label": "label"}, "which is also a column of the input"),
        ({"template": TemplateConfig()}, "template is for language models"),
        (
            {"kind": "causal-lm", "text_pair": "label"},
            "text_pair is for sequence classifiers, and the experts are causal language models",
        ),
        ({"kind": "causal-lm", "label": "text"}, "which is also the column of the input"),
        (
            {"kind": "causal-lm", "label": "label", "template": TemplateConfig(completion="{label}")},
            "template uses the column 'label', which tasks.films.label declares to be the label",
        ),
        ({"kind": "causal-lm", "template": TemplateConfig(prompt="{text")}, "template.prompt is '{text'"),
        ({"kind": "causal-lm", "template": TemplateConfig(prompt="{text:>3}")}, "must hold the name of a column"),
    ],
)
def test_contradicting_settings(films: Path, load: Loader, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(**settings)


# Language models.


def test_completions_are_scored_and_prompts_are_not(
    tmp_path: Path, load: Loader, pieces: PreTrainedTokenizerBase
) -> None:
    write_lines(tmp_path / "films.jsonl", [{"q": f"ab {i}", "a": " yes ab"} for i in range(9)])
    calibration = load(
        kind="causal-lm",
        tokenizer=pieces,
        splits=SplitsConfig(fit=3, select=3, report=3),
        template=TemplateConfig(prompt="{q}?", completion="{a}"),
        keep_labels=frozenset({"report"}),
    )
    task = calibration.tasks["films"]
    assert task.num_labels is None
    assert [task.splits[name].has_labels for name in SPLITS] == [False, False, True]
    for batch in task.splits["fit"].batches(batch_tokens=4096):
        assert batch.targets is None
        assert batch.scored is not None
        for ids, scored in zip(batch.inputs["input_ids"], batch.scored, strict=True):
            predicted = ids[1:][scored[:-1]]
            assert pieces.decode(predicted) == " yes ab"
            assert not scored[-1]


def test_without_a_template_the_whole_text_is_scored(
    tmp_path: Path, load: Loader, pieces: PreTrainedTokenizerBase
) -> None:
    write_lines(tmp_path / "films.jsonl", [{"text": f"ab yes {i}"} for i in range(6)])
    calibration = load(kind="causal-lm", tokenizer=pieces, splits=SplitsConfig(fit=2, select=2, report=2))
    for batch in calibration.tasks["films"].splits["fit"].batches(batch_tokens=4096):
        for ids, scored in zip(batch.inputs["input_ids"], batch.scored, strict=True):
            assert re.fullmatch(r"ab yes \d", pieces.decode(ids[1:][scored[:-1]]))


def test_a_prompt_that_fills_max_tokens_is_left_out(
    tmp_path: Path, load: Loader, pieces: PreTrainedTokenizerBase
) -> None:
    rows = [{"q": "xyz" * (20 if i < 4 else 1), "a": f" yes {i}"} for i in range(10)]
    write_lines(tmp_path / "films.jsonl", rows)
    options = {"kind": "causal-lm", "tokenizer": pieces, "max_tokens": 16}
    template = TemplateConfig(prompt="{q}", completion="{a}")
    assert load(splits=SplitsConfig(fit=2, select=2, report=2), template=template, **options).fit_sizes() == {
        "films": 2
    }
    note = "4 examples have no completion token within max_tokens = 16 and are left out"
    with refused(f"has 6 distinct usable ones ({note})"):
        load(splits=SplitsConfig(fit=3, select=2, report=2), template=template, **options)


# Transductive searches.


def test_a_transductive_report_holds_the_inputs_of_fit_and_select(films: Path, load: Loader) -> None:
    keep = frozenset[SplitName]({"report"})
    splits = SplitsConfig(fit=20, select=10, report=900, transductive=True)
    task = load(splits=splits, label="label", keep_labels=keep).tasks["films"]
    fit, select, report = (task.splits[name] for name in SPLITS)
    assert set(report.keys) == set(fit.keys) | set(select.keys)
    assert (fit.size, select.size, report.size) == (20, 10, 30)
    assert [split.has_labels for split in (fit, select, report)] == [False, False, True]
    assert all(batch.targets is None for batch in fit.batches(batch_tokens=64))
    limited = load(splits=splits, limit=4).tasks["films"].splits
    assert limited["report"].keys == limited["select"].keys + limited["fit"].keys
    with refused("the splits need 61 examples (fit 51, select 10) and films.jsonl has 60 distinct"):
        load(splits=SplitsConfig(fit=51, select=10, transductive=True))


def test_otherwise_no_content_is_in_two_splits(films: Path, load: Loader) -> None:
    write_lines(films, rows_of(films) * 3)
    splits = load(splits=SplitsConfig(fit=0.5, select=0.2, report=0.3)).tasks["films"].splits
    texts = [
        {tuple(ids) for batch in splits[name].batches(batch_tokens=64) for ids in batch.inputs["input_ids"].tolist()}
        for name in SPLITS
    ]
    assert sum(map(len, texts)) == len(texts[0] | texts[1] | texts[2]) == 60


def test_methods_of_labels_have_a_split_of_their_own(films: Path, load: Loader) -> None:
    """What is judged does not see them, and is the same with and without such methods."""
    without, task = (load(label="label", label_readers=names).tasks["films"] for names in ((), ("led",)))
    assert without.labelled is None
    assert task.labelled is not None
    assert task.labelled.has_labels
    assert task.labelled.keys == task.splits["fit"].keys
    assert all(batch.targets is not None for batch in task.labelled.batches(batch_tokens=64))
    assert not task.splits["fit"].has_labels
    assert all(batch.targets is None for batch in task.splits["fit"].batches(batch_tokens=64))
    assert task.sha256 == without.sha256


@pytest.mark.parametrize(("label", "said"), [(None, r"\.label: missing"), ("genre_", "has no column 'genre_'")])
def test_a_method_of_labels_without_them_is_named(films: Path, load: Loader, label: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said) as raised:
        load(label=label, label_readers=("led", "sens"))
    assert "the methods led and sens read labels" in str(raised.value)
    assert "methods without labels, such as fisher" in str(raised.value)
    assert "expert-kl" not in str(raised.value)
