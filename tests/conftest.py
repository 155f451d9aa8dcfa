"""One thread for numerical libraries, here and in every process that a test starts; more time for the long tests."""

import os

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests share few cores

hypothesis.settings.register_profile("busy", deadline=None)  # no example is wrong because a machine is busy
hypothesis.settings.load_profile("busy")

_LONG_S = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is bounded in time (pyproject.toml); the long ones have more of it."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(_LONG_S))
