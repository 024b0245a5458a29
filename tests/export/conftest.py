"""Tiny families opened once per session, and a cache folder of the tests' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from optmerge.models.family import Family
from tests.export.families import opened


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """``family("llama")``: the tiny family of that kind, made and opened at its first use."""
    made: dict[str, Family] = {}

    def get(kind: str) -> Family:
        if kind not in made:
            made[kind] = opened(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get
