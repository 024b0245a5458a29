"""What headers and configs tell is remembered, and never used where it would not be true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optmerge.errors import ModelError
from optmerge.models import family as family_module
from optmerge.models import layouts
from optmerge.models.family import Family, open_family
from tests.tiny import save_family, save_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))


def opened(base: Path, experts: dict[str, Path]) -> Family:
    return open_family(str(base), {name: str(folder) for name, folder in experts.items()}, relative_to=Path())


def forbid_examining(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the layout was not remembered")

    monkeypatch.setattr(family_module, "examine", refuse)


@pytest.mark.parametrize("kind", ["bert", "llama", "llama-tied", "mixtral", "gpt2", "vit"])
def test_a_remembered_family_is_the_examined_one(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_family(kind, tmp_path)
    first = opened(saved.base, saved.experts)
    forbid_examining(monkeypatch)
    again = opened(saved.base, saved.experts)
    assert again.parameters == first.parameters
    assert list(again.parameters) == list(first.parameters)
    assert (again.kind, again.heads, again.head_parameters, again.num_layers) == (
        first.kind,
        first.heads,
        first.head_parameters,
        first.num_layers,
    )
    for who in ("base", *first.experts):
        before, after = first.maps[who], again.maps[who]
        assert after.pieces == before.pieces
        assert after.buffer_pieces == before.buffer_pieces
        assert (after.duplicates, after.missing, after.unused) == (before.duplicates, before.missing, before.unused)
        for name in first.parameters:
            assert first.read(who, name).equal(again.read(who, name))


def test_other_weights_of_the_same_architecture_are_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, one, two = (save_model("llama", tmp_path / name, seed=seed) for seed, name in enumerate(["b", "1", "2"]))
    opened(base, {"e": one})
    forbid_examining(monkeypatch)
    assert opened(base, {"e": two}).experts["e"].folder == two


@pytest.mark.parametrize("change", ["config", "shape", "heads"])
def test_what_differs_is_examined_anew(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, one = (save_model("llama", tmp_path / name, seed=seed) for seed, name in enumerate(["b", "1"]))
    opened(base, {"e": one})
    forbid_examining(monkeypatch)
    heads = "auto"
    if change == "config":
        path = one / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))
    elif change == "shape":
        one = save_model("llama", tmp_path / "wide", seed=1, intermediate_size=32)
    else:
        heads = "merged"
    with pytest.raises(AssertionError, match="not remembered"):
        open_family(str(base), {"e": str(one)}, relative_to=Path(), heads=heads)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b'{"model_type":', b"\xff\xfe", b"[1]"])
def test_a_damaged_config_is_named(content: bytes, tmp_path: Path) -> None:
    base, one = (save_model("llama", tmp_path / name, seed=seed) for seed, name in enumerate(["b", "1"]))
    (one / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"1/config\.json (is not valid JSON|holds a list).*Download or copy it again"):
        opened(base, {"e": one})


def test_a_note_on_configs_is_given_every_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, one = (save_model("llama", tmp_path / name, seed=seed) for seed, name in enumerate(["b", "1"]))
    path = one / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))
    for _ in range(2):
        caplog.clear()
        opened(base, {"e": one})
        assert "rms_norm_eps 0.1" in caplog.text


def test_a_second_merge_imports_no_transformers(tmp_path: Path) -> None:
    saved = save_family("llama", tmp_path / "zoo")
    recipe = tmp_path / "recipe.yaml"
    experts = "\n".join(f"  {name}: {folder}" for name, folder in saved.experts.items())
    recipe.write_text(
        f"optmerge_recipe: 1\nbase: {saved.base}\nexperts:\n{experts}\ncoefficients: {{one: 0.3, two: 0.3}}\n"
    )
    program = (
        "import sys; from optmerge.export.api import merge; merge(sys.argv[1], sys.argv[2]); "
        "print('transformers' in sys.modules)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program, str(recipe), str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).stdout.strip()
        for name in ("first", "second")
    ]
    assert told == ["True", "False"]
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()


@pytest.mark.parametrize("module", ["conversions", "examination", "tracing"])
def test_what_a_changed_module_found_is_not_remembered(module: str, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(Path(layouts.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = layouts.code_hash.__wrapped__(copy)
    assert before == layouts.code_hash(Path(layouts.__file__).parent)
    with (copy / f"{module}.py").open("a") as file:
        file.write("# changed")
    assert layouts.code_hash.__wrapped__(copy) != before
