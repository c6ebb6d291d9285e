"""bgwork: a Boltzmann generator workbench with exact likelihoods.

    system    = bgwork.load_system("lj13")
    flow      = bgwork.load_generator("lj13")
    proposal  = flow.sample(2000, generator=torch.Generator().manual_seed(0))
    weighted  = bgwork.weigh(proposal, system.target)
    print(bgwork.ess(weighted), bgwork.log_z(weighted))
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

HOMES = {
    "free_energy": ("forward_ess", "free_energy_difference", "log_z_bar"),
    "generators": ("load_generator",),
    "multistate": ("mbar",),
    "pareto": ("pareto_k",),
    "profiles": ("free_energy_profile",),
    "records": ("Density", "Estimate", "Proposal", "WeightedSamples"),
    "reweighting": ("ess", "expectation", "log_z", "weigh"),
    "samplers.diagnostics": ("ReferenceSet", "diagnose"),
    "store": ("load_samples", "save_samples"),
    "system": ("System", "list_systems", "load_system", "reference_samples"),
}


def __getattr__(name: str) -> Any:
    """Names are fetched when they are first used, so that the command line can answer Ctrl-C before torch is there (`bgwork.cli`)."""
    home = next((home for home, names in HOMES.items() if name in names), None)
    if home is None and find_spec(f"bgwork.{name}"):
        return import_module(f"bgwork.{name}")
    if home is None:
        raise AttributeError(f"module 'bgwork' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"bgwork.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
