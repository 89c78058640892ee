"""How models and libraries are set for the time of a block, and are again as they were afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits
from torch import nn
from transformers.utils import logging


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model without dropout."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@contextmanager
def in_own_precision(model: nn.Module) -> Iterator[None]:
    """A model without the autocast that the library's Trainer has put around its forward pass."""
    # The wrapper is an attribute of the instance, in the way of the class's own method.
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped


@contextmanager
def without_bars() -> Iterator[None]:
    """The transformers library draws no progress bars."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """The transformers library tells errors only, and draws no bars."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for torch and for the libraries under scikit-learn."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)
