"""One thread for torch: equal bits from run to run, and no spinning where the cores are busy."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
