"""The search files in docs/images.md are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from optmerge.config.load import build_config
from optmerge.config.reading import read_yaml

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "images.md"
FILES = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_there_is_one_for_every_kind() -> None:
    assert len(FILES) == 3


@pytest.mark.parametrize("text", FILES, ids=["classifiers", "clip", "vision-language"])
def test_it_is_valid(text: str, tmp_path: Path) -> None:
    build_config(read_yaml(text, source="docs/images.md"), root=tmp_path)
