"""References: what they parse to, and what is said when nothing is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from optmerge.errors import ModelError
from optmerge.models.reference import ModelReference, model_files, resolve


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for name in ("zoo/base", "zoo/adapter", "zoo/odd+name@1"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_folder_becomes_absolute_and_parses_to_itself(zoo: Path) -> None:
    reference = ModelReference.parse("zoo/base", relative_to=zoo)
    assert reference.local
    assert reference.source == str(zoo / "zoo/base")
    assert ModelReference.parse(reference.text, relative_to=Path("/elsewhere")) == reference
    assert resolve(reference).folder == zoo / "zoo/base"


def test_existing_folder_wins_over_plus_and_at(zoo: Path) -> None:
    reference = ModelReference.parse("zoo/odd+name@1", relative_to=zoo)
    assert reference.adapter is None
    assert reference.revision is None


def test_adapter(zoo: Path) -> None:
    reference = ModelReference.parse("zoo/base+zoo/adapter", relative_to=zoo)
    assert reference.adapter is not None
    assert resolve(reference).adapter_folder == zoo / "zoo/adapter"
    assert ModelReference.parse(reference.text, relative_to=Path("/elsewhere")) == reference
    odd = ModelReference.parse("zoo/odd+name@1+zoo/adapter", relative_to=zoo)
    assert odd.source.endswith("odd+name@1")


def test_hub_forms(tmp_path: Path) -> None:
    plain = ModelReference.parse("org/name", relative_to=tmp_path)
    assert (plain.source, plain.revision, plain.local) == ("org/name", None, False)
    pinned = ModelReference.parse("org/name@v1.0+org/lora", relative_to=tmp_path)
    assert (pinned.source, pinned.revision) == ("org/name", "v1.0")
    assert pinned.adapter is not None
    assert pinned.adapter.source == "org/lora"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("./zoo/bsae", "Did you mean 'base'"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("a/b/c", "owner/name"),
        ("", "owner/name"),
        ("org/name@", "owner/name"),
        ("x/y+p/q+r/s", "2 plus signs"),
        ("zoo/file.bin", "is a file"),
    ],
)
def test_what_cannot_be_a_model(zoo: Path, text: str, said: str) -> None:
    (zoo / "zoo/file.bin").touch()
    with pytest.raises(ModelError, match=said.replace("/", "/")):
        ModelReference.parse(text, relative_to=zoo)


def test_folder_that_vanished(zoo: Path) -> None:
    reference = ModelReference.parse("zoo/base", relative_to=zoo)
    (zoo / "zoo/base").rmdir()
    with pytest.raises(ModelError, match="no longer exists"):
        resolve(reference)


def _answer(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url="hub"), text="")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (lambda: errors.GatedRepoError("gated", response=_answer(403)), "is gated. Ask for access on .*hf auth login"),
        (lambda: errors.RepositoryNotFoundError("none", response=_answer(404)), "has no model org/name.*private"),
        (lambda: errors.RevisionNotFoundError("none", response=_answer(404)), "no revision 'v9'"),
        (lambda: errors.LocalEntryNotFoundError("none"), "cannot be reached.*hf download org/name"),
        (lambda: errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (lambda: errors.HfHubHTTPError("500 Server Error", response=_answer(500)), "refused.*500 Server Error"),
        (lambda: errors.HFValidationError("bad"), "not an id"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: Any, said: str) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise problem()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=said):
        resolve(ModelReference.parse("org/name@v9", relative_to=tmp_path))


def test_hub_snapshot_and_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = tmp_path / "snapshots" / "0a1b2c"
    commit.mkdir(parents=True)
    asked: list[list[str]] = []

    def give(source: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", give)
    reference = ModelReference.parse("org/name", relative_to=tmp_path)
    assert resolve(reference).revision == "0a1b2c"
    assert not any(pattern.endswith(".bin") for pattern in asked[0])
    assert "README.md" in asked[0]  # cards state the licence that merges inherit
    resolve(reference, allow_pickle=True)  # there are no safetensors: the pickles are fetched
    assert any(pattern.endswith(".bin") for pattern in asked[-1])


def test_offline_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match="not in the Hugging Face cache"):
        resolve(ModelReference.parse("org/name", relative_to=tmp_path))


def test_the_files_of_a_model_are_those_that_are_read(tmp_path: Path) -> None:
    wanted = ["config.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    (tmp_path / "additional_chat_templates").mkdir()
    other = ["optimizer.pt", "consolidated.safetensors", "model.gguf", "pytorch_model.bin"]
    for name in [*wanted, *other, "additional_chat_templates/rag.jinja"]:
        (tmp_path / name).touch()

    def names(**options: bool) -> set[str]:
        return {path.relative_to(tmp_path).as_posix() for path in model_files(tmp_path, **options)}

    assert names() == {*wanted, "additional_chat_templates/rag.jinja"}
    assert names(allow_pickle=True) - names() == {"pytorch_model.bin"}
    (tmp_path / "model.safetensors").touch()
    assert names(allow_pickle=True) == names() == {*wanted, "additional_chat_templates/rag.jinja", "model.safetensors"}
