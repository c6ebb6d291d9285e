"""Features of time that tell late times apart."""

from __future__ import annotations

import pytest
import torch

from bgwork.fields.radial import TimeFeatures, harmonics, logarithmic, on_logarithmic_scale


def test_the_logarithmic_scale_runs_from_one_to_nothing_and_halves_evenly():
    t = torch.tensor([0.0, 0.9, 0.95, 0.975, 1.0], dtype=torch.float64)
    scale = logarithmic(t, 1e-6)
    assert scale[0] == 1 and scale[-1] == 0
    torch.testing.assert_close(scale[1] - scale[2], scale[2] - scale[3], rtol=1e-3, atol=0)


def test_late_times_are_told_apart():
    """What harmonics of t alone hardly do."""
    late = torch.tensor([[0.99], [0.997]], dtype=torch.float64)
    plain, fine = harmonics(late), harmonics(logarithmic(late, 0.003))
    assert (fine[0] - fine[1]).norm() > 10 * (plain[0] - plain[1]).norm()


@pytest.mark.parametrize("times", [1, 2])
def test_scalars_are_batches(times):
    torch.manual_seed(0)
    features = TimeFeatures(4, times, nearest=0.01)
    t = torch.tensor(0.3) if times == 1 else torch.tensor([0.3, 0.6])
    torch.testing.assert_close(features(t, 5), features(t.expand(5, *t.shape), 5))
    assert features(t, 5).shape == (5, 4)


def test_weights_without_the_scale_compute_the_same_with_it():
    torch.manual_seed(0)
    plain, fine = torch.nn.ModuleDict({"time": TimeFeatures(4)}), torch.nn.ModuleDict({"time": TimeFeatures(4, nearest=0.01)})
    fine.load_state_dict(on_logarithmic_scale(fine, plain.state_dict()))
    t = torch.rand(6)
    torch.testing.assert_close(fine["time"](t, 6), plain["time"](t, 6))
    assert on_logarithmic_scale(plain, fine.state_dict())["time.net.0.weight"].shape[1] == 18
    other = {"time.net.0.weight": torch.zeros(8, 5)}
    assert on_logarithmic_scale(fine, other)["time.net.0.weight"].shape[1] == 5  # for whoever asks why it does not fit
