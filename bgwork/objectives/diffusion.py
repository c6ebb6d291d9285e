"""Denoising diffusion from data: the score network that few-step samplers are compared with, in its velocity form.

    x_t = a x1 + b x0,  independent x0 ~ N(0, s0^2);   L = E |v(t, x_t) - (a' x1 + b' x0)|^2

is denoising score matching with the weight ((a b' - a' b) b s0^2 / a)^2 on the score, since x1, x0, score and velocity determine each other
at given x_t (Kingma and Gao 2023, arXiv:2303.00848, appendix D). The minimiser is the velocity of the probability flow, so that the same
network is sampled by random steps with path weights or by a flow with the exact density of the executed map.
"""

from __future__ import annotations

from torch import Tensor

from bgwork.couplings import Independent
from bgwork.objectives.flow_matching import FlowMatchingData
from bgwork.paths import Interpolant, LinearInterpolant, Times, VariancePreserving
from bgwork.protocols import Prior

SCHEDULES: dict[str, Interpolant] = {"linear": LinearInterpolant(), "variance-preserving": VariancePreserving()}


def denoising_data(x1: Tensor, prior: Prior, path: Interpolant, *, batch: int, seed: int, times: Times, **options) -> FlowMatchingData:
    """Batches for denoising: data and noise drawn independently, as the random walks back to the noise assume.

    Args:
        x1: data [N, n, d].
        prior: Gaussian noise.
        path: noise schedule.
        batch, seed, times, options: as in `FlowMatchingData`.
    """
    return FlowMatchingData(x1=x1, prior=prior, coupling=Independent(), batch=batch, seed=seed, times=times, path=path, **options)


def score_of_velocity(path: Interpolant, t: Tensor, x: Tensor, v: Tensor, *, prior_std: float) -> Tensor:
    """grad log p_t(x) = (a v - a' x) / ((a' b - a b') b s0^2), [B, n, d].

    Args:
        path: noise schedule.
        t: [B], below 1, where the score of the noise has a limit.
        x, v: [B, n, d].
        prior_std: s0.
    """
    a, b, a_rate, b_rate = path.coefficients(t[:, None, None])
    return (a * v - a_rate * x) / ((a_rate * b - a * b_rate) * b * prior_std**2)
