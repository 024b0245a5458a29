"""What of a search its workers' machines are given, and under which names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optmerge.config.load import build_config
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError, RunError
from optmerge.models.cache import remember
from optmerge.models.reference import Resolved
from optmerge.runner import search_files
from optmerge.runner.node_files import FileEntry, NodeFiles, SharedFiles, Tree
from optmerge.runner.references import absolute_references
from optmerge.runner.search_files import SearchFiles
from optmerge.runner.worker import WorkerSpec

Serve = Callable[..., WorkerSpec]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A search's folder with files that only look like what they are called."""
    root = tmp_path / "search"
    for name in ("base", "one", "two+more"):
        (root / name).mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "tokenizer.json", "optimizer.pt", "consolidated.safetensors"):
            (root / name / file).write_text(f"{name} {file}")
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_model.safetensors").write_text("factors")
    for name in ("a", "b"):
        (root / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    (root / "mine.py").write_text("class Mine: ...")
    return root


@pytest.fixture
def settings(root: Path) -> dict[str, Any]:
    return {
        "base": "base",
        "experts": {"a": "one", "b": "two+more"},
        "tasks": {name: {"expert": name, "data": f"{name}.jsonl"} for name in ("a", "b")},
        "objective": {"terms": [{"name": "entropy"}]},
        "executor": {"workers": 2, "files": "fetch"},
    }


@pytest.fixture
def serve(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """What a worker is made from, for some settings; the originals are out of its sight."""
    monkeypatch.setattr(
        search_files, "FileEntry", lambda name, sha256, size, origin: FileEntry(name, sha256, size, f"/hidden{origin}")
    )
    with ExitStack() as stack:

        def make(settings: dict[str, Any], kind: str = "causal-lm", **folders: Path) -> WorkerSpec:
            config = absolute_references(build_config(settings, root=root), root)
            problem: Any = SimpleNamespace(family=SimpleNamespace(kind=kind), deltas=SimpleNamespace(folders=folders))
            files = stack.enter_context(closing(SearchFiles(config, problem, {}, host="127.0.0.1")))
            return files.spec(WorkerSpec(config, ("cpu",), {}, 1, "accumulate", (), folders, (), "/cache"))

        yield make


def here(spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SearchConfig, NodeFiles]:
    """The search as a worker's machine sees it."""
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "node"))
    assert spec.fetching is not None
    node = NodeFiles(spec.fetching)
    return node.located(spec.config), node


def test_models_and_data_have_their_content_under_other_names(
    serve: Serve, settings: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = serve(settings)
    assert str(root) not in spec.config.model_dump_json()
    assert spec.cache is None
    config, _ = here(spec, tmp_path, monkeypatch)
    for text, original in ((config.base, "base"), (config.experts["a"], "one"), (config.experts["b"], "two+more")):
        assert Path(text).is_relative_to(tmp_path / "node")
        found = {path.name: path.read_text() for path in Path(text).iterdir()}
        wanted = ("config.json", "model.safetensors", "tokenizer.json")
        assert found == {name: f"{original} {name}" for name in wanted}, "no more than what models are read from"
    assert json.loads(Path(config.tasks["a"].data).read_text()) == {"text": "a"}
    assert Path(config.tasks["a"].data).name == "a.jsonl"


def test_an_adapter_stays_beside_its_model(
    serve: Serve, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = serve(settings | {"experts": {"a": "base+adapter", "b": "one"}})
    config, _ = here(spec, tmp_path, monkeypatch)
    base, adapter = config.experts["a"].split("+")
    assert base == config.base
    assert (Path(adapter) / "adapter_model.safetensors").read_text() == "factors"


def test_models_of_the_hub_are_named_with_their_commit(
    serve: Serve, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_files, "resolve", lambda reference, **options: Resolved(Path("/hub/c0ffee"), "c0ffee"))
    spec = serve(settings | {"base": "org/model@main", "experts": {"a": "org/model+adapter", "b": "org/other"}})
    assert spec.config.base == "org/model@c0ffee"
    assert spec.config.experts["b"] == "org/other@c0ffee"
    assert spec.config.experts["a"].startswith("org/model@c0ffee+/")


def test_users_own_files_and_deltas_go_along(
    serve: Serve, settings: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "delta").mkdir()
    (root / "delta" / "part-00000.safetensors").write_text("delta")
    own = {"directions": ["experts", {"name": "custom", "path": "mine.py:Mine"}]}
    term = {"objective": {"terms": [{"name": "custom", "path": "mine.py:Mine"}]}}
    spec = serve(settings | own | term, Mine=root / "delta")
    config, node = here(spec, tmp_path, monkeypatch)
    for entry in (config.directions[1], config.objective.terms[0]):
        file, _, name = getattr(entry, "path").rpartition(":")  # noqa: B009 - of either kind of settings
        assert (name, Path(file).read_text()) == ("Mine", "class Mine: ...")
    assert (node.path(spec.deltas["Mine"]) / "part-00000.safetensors").read_text() == "delta"


def test_a_search_that_starts_from_a_recipe_needs_it_no_more(
    serve: Serve, settings: dict[str, Any], root: Path
) -> None:
    (root / "recipe.yaml").write_text("version: 1")
    spec = serve(settings | {"space": {"start": "recipe.yaml"}})
    assert spec.config.space.start == "best-baseline"


def test_images_go_along_with_the_file_that_names_them(
    serve: Serve, settings: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "pictures").mkdir()
    (root / "pictures" / "1.png").write_text("one")
    (root / "pictures" / "2.png").write_text("two, which no row names")
    (root / "a.jsonl").write_text(json.dumps({"image": "pictures/1.png"}))
    spec = serve(settings, "image-classification")
    config, _ = here(spec, tmp_path, monkeypatch)
    folder = Path(config.tasks["a"].data).parent
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == ["a.jsonl", "pictures/1.png"]


def test_tasks_on_one_file_have_the_images_of_their_own_columns(
    serve: Serve, settings: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "2"):
        (root / f"{name}.png").write_text(name)
    (root / "a.jsonl").write_text(json.dumps({"image": "1.png", "crop": "2.png"}))
    tasks = {"a": {"expert": "a", "data": "a.jsonl"}, "b": {"expert": "b", "data": "a.jsonl", "image": "crop"}}
    config, _ = here(serve(settings | {"tasks": tasks}, "image-classification"), tmp_path, monkeypatch)
    for task in config.tasks.values():
        assert sorted(path.name for path in Path(task.data).parent.iterdir()) == ["1.png", "2.png", "a.jsonl"]


@pytest.mark.parametrize("name", ["/pictures/1.png", "../1.png"])
def test_images_outside_of_the_folder_are_refused(
    serve: Serve, settings: dict[str, Any], root: Path, name: str
) -> None:
    (root / "a.jsonl").write_text(json.dumps({"image": name}))
    with pytest.raises(ConfigError, match=r"tasks\.a\.data: .*names the image .*Name images relative to the file"):
        serve(settings, "image-classification")


def test_a_folder_of_images_keeps_its_classes(
    serve: Serve, settings: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("cats", "dogs"):
        (root / "pets" / kind).mkdir(parents=True)
        (root / "pets" / kind / "1.png").write_text(kind)
    settings["tasks"]["a"]["data"] = "pets"
    spec = serve(settings, "image-classification")
    config, _ = here(spec, tmp_path, monkeypatch)
    assert (Path(config.tasks["a"].data) / "dogs" / "1.png").read_text() == "dogs"


def test_what_the_search_has_found_out_is_known_there(
    serve: Serve, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember("samples", "chosen-here", {"positions": {"fit": [1, 2]}})
    remember("hashes", "of-a-path-here", {"sha256": "..."})
    spec = serve(settings)
    here(spec, tmp_path, monkeypatch)
    assert json.loads((tmp_path / "node" / "samples" / "chosen-here.json").read_text()) == {
        "positions": {"fit": [1, 2]}
    }
    assert not (tmp_path / "node" / "hashes" / "of-a-path-here.json").exists()


def test_a_machine_that_should_have_a_file_and_has_not_says_which(settings: dict[str, Any], root: Path) -> None:
    config = absolute_references(build_config(settings, root=root), root)
    assert SharedFiles().located(config) == config
    (root / "b.jsonl").unlink()
    with pytest.raises(RunError, match=r"b\.jsonl is not on .*, where a worker is to run.*executor\.files: fetch"):
        SharedFiles().located(config)
    (root / "two+more").rename(root / "elsewhere")
    with pytest.raises(RunError, match=r"two is not on "):
        SharedFiles().located(config)


def test_an_address_of_another_machine_is_told(settings: dict[str, Any], root: Path) -> None:
    config = absolute_references(build_config(settings, root=root), root)
    with pytest.raises(RunError, match=r"cannot serve its files at 192\.0\.2\.1, the address by which"):
        SearchFiles(config, cast(Any, None), {}, host="192.0.2.1")


def test_a_file_that_is_gone_is_told(serve: Serve, settings: dict[str, Any], root: Path) -> None:
    (root / "one" / "vocab.json").symlink_to(root / "nowhere")
    serve(settings)  # what is no file is none of the model's
    with pytest.raises(RunError, match=r"gone\.jsonl cannot be read, and workers' machines need it"):
        serve(settings | {"tasks": {"a": {"expert": "a", "data": "gone.jsonl"}}})


def test_names_lead_nowhere_else(settings: dict[str, Any], serve: Serve) -> None:
    spec = serve(settings)
    assert spec.fetching is not None
    for name in ("../outside", "/outside"):
        with pytest.raises(AssertionError, match="leads out of its tree"):
            NodeFiles(spec.fetching).place([Tree((FileEntry(name, "0" * 64, 1, "/x"),))])
