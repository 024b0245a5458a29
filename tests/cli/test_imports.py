"""What answers at once must not import what is slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "wandb", "optuna", "cma", "peft", "matplotlib", "huggingface_hub")

PROBE = """
import sys
sys.argv = ["optmerge", *sys.argv[1:]]
from optmerge.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
print("code", code)
print("loaded", *(name for name in %r if name in sys.modules))
"""


def probe(*arguments: str) -> tuple[str, list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE % (HEAVY,), *arguments], capture_output=True, text=True, check=True
    )
    *_, code, loaded = done.stdout.splitlines()
    return code.split()[-1], loaded.split()[1:], done.stderr


@pytest.fixture
def file(tmp_path: Path) -> str:
    from optmerge.cli.init import render

    path = tmp_path / "search.yaml"
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").touch()
    path.write_text(render("search.yaml", "base", {"a": "x", "b": "y"}, {"a": "a.jsonl", "b": "b.jsonl"}))
    return str(path)


def test_help_imports_nothing_heavy() -> None:
    assert probe("--help")[:2] == ("0", [])


def test_validate_imports_nothing_heavy(file: str) -> None:
    assert probe("validate", file) == ("0", [], "")


def test_a_typo_is_told_without_importing_anything_heavy(file: str) -> None:
    Path(file).write_text(Path(file).read_text().replace("tensor-wise\n", "tensorwise\n"))
    code, loaded, error = probe("search", file)
    assert (code, loaded) == ("2", [])
    assert "Did you mean 'tensor-wise'" in error


def test_ls_without_a_search_file_imports_nothing_heavy() -> None:
    assert probe("ls")[:2] == ("0", [])


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = f"import sys, optmerge; optmerge.SearchConfig; sys.exit(any(n in sys.modules for n in {HEAVY!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
