"""Fixtures that several tests share."""

from __future__ import annotations

import pytest
import torch
from toy import Toy, make_toy

torch.set_num_threads(1)


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    """The toy system in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return make_toy(tmp_path)
