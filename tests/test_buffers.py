"""Replay buffers: a ring that keeps the newest rows, draws with the stated probabilities, and comes back from a checkpoint."""

import pytest
import torch
from oracles import binomial_bounds

from bgwork.buffers import ReplayBuffer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(*values):
    x = torch.tensor(values, dtype=torch.float64)
    return {"x": x[:, None, None], "u": -x}


def test_the_newest_rows_remain_and_columns_stay_together():
    buffer = ReplayBuffer(5)
    for part in ((0, 1, 2), (3, 4, 5, 6), (7,)):
        buffer.add(rows(*part))
    assert len(buffer) == 5
    assert sorted(buffer["x"].flatten().tolist()) == [3, 4, 5, 6, 7]
    drawn = buffer.draw(50, generator=seeded())
    assert torch.equal(drawn["x"][:, 0, 0], -drawn["u"])


def test_more_rows_than_fit_leave_the_last_ones():
    buffer = ReplayBuffer(3)
    buffer.add(rows(*range(8)))
    assert sorted(buffer["x"].flatten().tolist()) == [5, 6, 7]
    buffer.add(rows(8))
    assert sorted(buffer["x"].flatten().tolist()) == [6, 7, 8]


def test_draws_are_uniform_over_the_rows_held():
    buffer, n = ReplayBuffer(10), 40_000
    buffer.add(rows(0, 1, 2, 3))
    counts = torch.bincount(buffer.draw(n, generator=seeded())["x"].long().flatten(), minlength=10)
    low, high = binomial_bounds(n, 1 / 4)
    assert ((counts[:4] > low) & (counts[:4] < high)).all() and counts[4:].sum() == 0


def test_prioritised_draws_follow_the_log_weights():
    buffer, n = ReplayBuffer(4), 40_000
    buffer.add({"x": torch.arange(4.0), "log_w": torch.tensor([1.0, 2.0, 3.0, 0.0]).log() + 700})
    counts = torch.bincount(buffer.draw_prioritised(n, "log_w", generator=seeded())["x"].long(), minlength=4)
    for k, p in enumerate((1 / 6, 2 / 6, 3 / 6)):
        low, high = binomial_bounds(n, p)
        assert low < counts[k] < high
    assert counts[3] == 0


def test_a_restored_buffer_goes_on_as_the_old_one():
    old, new = ReplayBuffer(5), ReplayBuffer(5)
    old.add(rows(0, 1, 2, 3, 4, 5, 6))
    new.load_state_dict(old.state_dict())
    for buffer in (old, new):
        buffer.add(rows(7, 8))
    for a, b in zip(old.draw(20, generator=seeded()).values(), new.draw(20, generator=seeded()).values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="capacity 3"):
        ReplayBuffer(3).load_state_dict(old.state_dict())


def test_bad_use_is_refused():
    buffer = ReplayBuffer(5)
    with pytest.raises(ValueError, match="empty"):
        buffer.draw(1, generator=seeded())
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(0)
    buffer.add(rows(1))
    with pytest.raises(ValueError, match="another buffer"):
        buffer.add({"x": torch.zeros(1, 1, 1)})
    with pytest.raises(ValueError, match="same number of rows"):
        buffer.add({"x": torch.zeros(2, 1, 1), "u": torch.zeros(1)})
    with pytest.raises(ValueError, match="another buffer"):
        buffer.add({name: value.float() for name, value in rows(2).items()})
    buffer.add(rows(torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        buffer.draw_prioritised(1, "u", generator=seeded())
