"""Flows on a torus: executed in the angles' covering space, where a step x + h v(t, x) with periodic v is an ordinary one.

The steps of such a map commute with whole turns, so that the map goes over to the torus with the same determinants, and its inverse too.
Only the samples are wrapped, after their certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bgwork.records import Proposal
from bgwork.samplers.flow import Flow


@dataclass(frozen=True, kw_only=True, eq=False)
class TorusFlow(Flow):
    """Sampler with the exact density of the executed steps on a torus; arguments as for `Flow`, with a field periodic in every angle.

    Example:
        >>> from bgwork.fields.torus import TorusMLP
        >>> from bgwork.priors import Uniform
        >>> from bgwork.records import Origin
        >>> from bgwork.spaces import Torus
        >>> flow = TorusFlow(prior=Uniform(space=Torus(n=1, d=2)), field=TorusMLP(1, 2), origin=Origin(method="flow", system="torus"))
        >>> flow.sample(8, generator=torch.Generator().manual_seed(0)).density
        <Density.EXACT: 'exact'>
    """

    def sample(self, n: int, *, generator: torch.Generator) -> Proposal:
        """As of `ExecutedMap`; angles in [-pi, pi)."""
        proposal = super().sample(n, generator=generator)
        return replace(proposal, x=self.space.project(proposal.x))
