"""bgwork: a Boltzmann generator workbench with exact likelihoods.

    system    = bgwork.load_system("lj13")
    flow      = bgwork.load_generator("lj13")
    proposal  = flow.sample(2000, generator=torch.Generator().manual_seed(0))
    weighted  = bgwork.weigh(proposal, system.target)
    print(bgwork.ess(weighted), bgwork.log_z(weighted))
"""

from bgwork.free_energy import forward_ess, free_energy_difference, log_z_bar
from bgwork.generators import load_generator
from bgwork.multistate import mbar
from bgwork.pareto import pareto_k
from bgwork.profiles import free_energy_profile
from bgwork.records import Density, Estimate, Proposal, WeightedSamples
from bgwork.reweighting import ess, expectation, log_z, weigh
from bgwork.samplers.diagnostics import ReferenceSet, diagnose
from bgwork.store import load_samples, save_samples
from bgwork.system import System, list_systems, load_system, reference_samples

__all__ = [
    "Density", "Estimate", "Proposal", "ReferenceSet", "System", "WeightedSamples", "diagnose", "ess", "expectation", "forward_ess",
    "free_energy_difference", "free_energy_profile", "list_systems", "load_generator", "load_samples", "load_system", "log_z",
    "log_z_bar", "mbar", "pareto_k", "reference_samples", "save_samples", "weigh",
]
