# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ramachandran maps and the free energy along phi
#
# From stored samples of a peptide: as the generator made them (raw), reweighted, and in the reference data, in kT on one colour scale.
# Nothing is sampled here. Run `bgwork run ala2-vacuum` first, or point `SAMPLES` at a run's folder, a samples file, or a trajectory
# (.dcd, .xtc, .pdb, .h5), which also needs `SYSTEM` and `FRAME_TIME`. Start it in the folder that holds `runs/`.

# %%
import os
from importlib.util import find_spec
from pathlib import Path

import torch

from bgwork import analysis, figures_molecular, routes, tables
from bgwork.conformation import BASINS, basin
from bgwork.export import pdb_text
from bgwork.pareto import pareto_k
from bgwork.reweighting import ess, resample

SAMPLES = Path(os.environ.get("BGWORK_SAMPLES", "runs/ala2-vacuum/shipped"))
SYSTEM = os.environ.get("BGWORK_SYSTEM")  # of a trajectory, such as "ala2-vacuum"
FRAME_TIME = float(os.environ["BGWORK_FRAME_TIME"]) if "BGWORK_FRAME_TIME" in os.environ else None  # ps, of a trajectory
PICTURES = Path(os.environ.get("BGWORK_PICTURES", "pictures"))


def show(figure, name):
    """Save a picture, and show it where there is a notebook."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=130)
    try:
        from IPython.display import Image, display
    except ImportError:
        print(f"picture: {path}")
    else:
        display(Image(filename=str(path)))


# %%
data = analysis.load(analysis.Source(path=SAMPLES, system=SYSTEM, frame_time=FRAME_TIME))
system, weighted = data.system, data.weighted
residues = analysis.residues_of(system)
print(f"{system.name}: {system.description}")
proposal = weighted.proposal
print(f"{len(weighted)} samples by {proposal.origin.method}, density {proposal.density.value}, {weighted.n_failed} failed")
print(f"effective sample size {ess(weighted)} of all, Pareto k {pareto_k(weighted.log_w):.2f}, edits: {proposal.origin.edits or 'none'}")
print("residues:", ", ".join(r.name or "one" for r in residues) or "none, so there is nothing to draw")
for problem in data.problems:
    print("may be no equilibrium data:", problem)

# %% [markdown]
# ## Maps
# Blank bins hold no samples. The lowest bin of each map is at zero, so that maps can be compared.

# %%
sets = figures_molecular.sample_sets(weighted, data.reference)
for residue in residues:
    show(figures_molecular.ramachandran_maps(figures_molecular.surfaces(sets, residue), name=residue.name), f"maps{residue.name}")

# %% [markdown]
# ## Free energy along phi
# Bands are one and two standard errors, over blocks where rows are correlated. *Pooled* is MBAR of samples and reference together, where
# the run stored the generator's density at the reference samples. The shaded basin is that of
# Delta F = -ln P(0 < phi <= 2 rad) + ln P(elsewhere): *weights* of these samples alone, *reference* data alone, and both together by MBAR:
# *pooled* trusts the populations of the reference, *local* does not.

# %%
for residue in residues:
    curves = figures_molecular.profiles(sets, residue)
    torsion = f"phi_{residue.name}" if residue.name else "phi"
    found = routes.profile_routes(data, torsion, figures_molecular.circle(figures_molecular.PROFILE_BINS))
    curves |= {label: curve for label, curve in found.by_route.items() if label == "pooled"}
    show(figures_molecular.torsion_profile(curves, name=residue.name), f"phi{residue.name}")
for name, found in analysis.delta_f_of(data).items():
    for route, value in found.by_route.items():
        print(f"Delta F({name}) from {route}: {tables.estimate(value)} kT")
    for route, reason in found.missing.items():
        print(f"Delta F({name}) from {route}: {reason}")

# %% [markdown]
# ## Are they still molecules?
# Broken bonds and wrong hands are counted and weighed, and never left out.

# %%
print(figures_molecular.intactness_text(weighted, system.topology, system.structure))
show(figures_molecular.bond_lengths(sets, system.topology, system.structure), "bonds")

# %% [markdown]
# ## Another temperature
# The same samples at 350 K: weights change, configurations do not.

# %%
warmer = analysis.at_temperature(data, 350.0)
print(f"effective sample size: predicted {warmer.retargeted.predicted.log_normal}, found {warmer.retargeted.measured}")
for name, found in analysis.delta_f_of(warmer).items():
    print(f"Delta F({name}) at 350 K: {tables.estimate(found.by_route.get('weights'))} kT")

# %% [markdown]
# ## In three dimensions
# A few equilibrium frames, drawn by weight: in a notebook with py3Dmol (`bgwork[notebook]`) they move; otherwise they go to a PDB file.

# %%
frames = resample(weighted.magnitudes, 8, generator=torch.Generator().manual_seed(0))
for residue in residues:
    print("basins:", ", ".join(BASINS[k] for k in basin(frames.x, residue=residue)))
text = pdb_text(frames.x, system)
if find_spec("py3Dmol") and find_spec("IPython"):
    import py3Dmol

    view = py3Dmol.view(width=480, height=360)
    view.addModelsAsFrames(text, "pdb")
    view.setStyle({"stick": {}, "sphere": {"scale": 0.25}})
    view.animate({"loop": "forward", "interval": 600})
    view.zoomTo()
    view.show()
else:
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "frames.pdb").write_text(text)
    print(f"frames: {PICTURES / 'frames.pdb'}")
