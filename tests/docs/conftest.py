"""Pages run in a folder of their own, by the command line inside this process."""

from __future__ import annotations

import pytest

from tests.cli.conftest import folder, run
from tests.docs.world import World

__all__ = ["folder", "run"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models, data and searches, each made when a page first needs it."""
    return World(tmp_path_factory.mktemp("world"))
