"""One thread; and torch's forward mode loaded once, which warns of itself."""

import warnings

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _forward_mode():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
