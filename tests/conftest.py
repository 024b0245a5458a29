"""What holds for all tests: the same examples every time, no network, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Derandomised: a failure is the same for everybody. No deadline: a loaded machine is no defect.
settings.register_profile("optmerge", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("optmerge")


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_users_things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that need a fresh cache set ``OPTMERGE_CACHE`` once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("WANDB_MODE", "offline")
        yield
