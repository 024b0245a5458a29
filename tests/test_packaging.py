"""What ships: the wheel and its presets, the public names, and registries that agree."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import optmerge
from optmerge.config.drivers import DRIVER_CONFIGS
from optmerge.config.load import read_mapping
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.config.objectives import TERM_CONFIGS, ObjectiveConfig
from optmerge.config.spaces import GRANULARITIES, SpaceConfig
from optmerge.config.stages import StageConfig
from optmerge.errors import ConfigError
from optmerge.presets import FOLDERS, PresetKind, find_preset, preset_folder, preset_names, preset_summary

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_code_presets_type_marker_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind, folder in FOLDERS.items():
        for name in preset_names(kind):
            assert f"optmerge/data/{folder}/{name}.yaml" in names
    assert {"optmerge/py.typed", "optmerge/demo/demo-assets.txt"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    roots = {name.partition("/")[0] for name in names}
    assert roots == {"optmerge", f"optmerge-{optmerge.__version__}.dist-info"}


def test_presets_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from optmerge.presets import *; print(preset_folder('space')); print(*preset_names('objective'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True, env={"PYTHONPATH": "."}
    )
    folder, names = done.stdout.splitlines()
    assert Path(folder) == tmp_path / "optmerge" / "data" / "search_spaces"
    assert names.split() == preset_names("objective")


def test_presets_are_found_beside_the_checkout() -> None:
    assert preset_folder("space") == ROOT / "search_spaces"
    with pytest.raises(ConfigError, match="Install optmerge again"):
        preset_folder("space", package=Path("nowhere/optmerge"))


@pytest.mark.parametrize("kind", FOLDERS)
def test_presets_are_valid_and_open_with_a_comment(kind: PresetKind) -> None:
    assert preset_names(kind)
    for name in preset_names(kind):
        path = find_preset(kind, name)
        assert preset_summary(path)
        comment = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
        for word in ("Paper:", "Cost:", "optmerge search"):
            assert word in comment, (name, word)
        content = read_mapping(path)
        if kind == "schedule":
            assert [StageConfig.model_validate(stage) for stage in content["schedule"]]
        elif kind == "methods":
            assert set(content) <= {"method", "methods", "directions"}
        else:
            (SpaceConfig if kind == "space" else ObjectiveConfig).model_validate(content)


def test_every_granularity_has_a_preset_of_its_name() -> None:
    assert set(preset_names("space")) >= set(GRANULARITIES)
    for name in GRANULARITIES:
        assert read_mapping(find_preset("space", name))["granularity"] == name


def test_exported_members() -> None:
    assert sorted(optmerge.__all__) == list(optmerge.__all__) == dir(optmerge)
    for name in optmerge.__all__:
        assert getattr(optmerge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        optmerge.serch  # noqa: B018


def test_registries_name_what_the_search_file_names() -> None:
    from optmerge.drivers import DRIVERS, driver_class

    assert set(DRIVERS) == set(DRIVER_CONFIGS)
    assert all(driver_class(name).name == name for name in DRIVERS)
    registry = importlib.import_module("optmerge.objective.registry")
    assert {*registry.TERMS, *registry.COEFFICIENT_TERMS, *registry.WHOLE_MODEL_TERMS} == set(TERM_CONFIGS)
    for configs in (DRIVER_CONFIGS, TERM_CONFIGS, METHOD_CONFIGS):
        for name, model in configs.items():
            assert model.model_fields["name"].default == name
