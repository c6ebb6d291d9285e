"""Directional weights of generators: which recipes have them, what their kernels are fitted to, and the command line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from commands import call, refused

from bgwork import store
from bgwork.fields.mlp import MLP
from bgwork.fields.two_times import AverageVelocity
from bgwork.generators import generator_path, load_trained
from bgwork.objectives.consistency import PairBatch, path_and_velocity_loss, path_loss
from bgwork.recipes import RecipeError, walks
from bgwork.records import Density
from bgwork.reweighting import ess, log_z, weigh
from bgwork.runs import SampleSettings, find_run

LOG_Z = 29.67  # of DW4, as every exact line of benchmarks/results/few_step.json has it


def sampler_of(recipe, *, steps=12, **changes):
    """A shipped generator of DW4 with directional weights."""
    made_by, trained = load_trained(generator_path("dw4", recipe=recipe))
    return made_by.sampler_of(replace(trained, **changes), replace(made_by.default_choice(), weights="directional", steps=steps))


@pytest.mark.parametrize(("recipe", "changes", "words"), [
    ("diffusion", {}, "fitted to 512 configurations"), ("diffusion", {"tuning": None}, "from the Jacobian"),
    pytest.param("distill-diffusion", {}, "fitted to 512 configurations", marks=pytest.mark.slow),  # a minute
    ("weighted-adjoint", {}, "a pilot run of 512 weighted samples"), ("adjoint", {}, "a pilot run of 512 weighted samples"),
])
def test_directional_weights_of_shipped_generators_are_proper_and_better(recipe, changes, words):
    sampler = sampler_of(recipe, **changes)
    proposal = sampler.sample(300, generator=torch.Generator().manual_seed(1))
    weighted = weigh(proposal, load_trained(generator_path("dw4", recipe=recipe))[1].system.target)
    assert proposal.density is Density.PATH and proposal.cost.jacobian == 300 * 12 and words in proposal.note
    found = log_z(weighted)
    assert abs(found.value - LOG_Z) < 4 * found.stderr
    made_by, trained = load_trained(generator_path("dw4", recipe=recipe))
    plain = made_by.sampler_of(trained, replace(made_by.default_choice(), weights="path", steps=12))
    worse = weigh(plain.sample(1000, generator=torch.Generator().manual_seed(1)), trained.system.target)
    assert ess(weighted).value > 1.2 * ess(worse).value
    again = sampler_of(recipe, **changes).sample(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.log_q, proposal.log_q)


def test_a_pilot_run_with_hardly_an_effective_sample_is_refused():
    made_by, trained = load_trained(generator_path("dw4", recipe="weighted-adjoint"))
    torch.nn.init.normal_(trained.network.inner.pair_out.weight if hasattr(trained.network.inner, "pair_out") else
                          next(p for p in trained.network.parameters() if p.ndim == 2), std=2.0)
    with pytest.raises(RecipeError, match="of 512 samples of a pilot run are effective"):
        made_by.sampler_of(trained, replace(made_by.default_choice(), weights="directional", steps=4))


def test_a_pilot_asks_for_the_energy_once_a_sample_and_for_no_reference():
    made_by, trained = load_trained(generator_path("dw4", recipe="weighted-adjoint"))
    before = trained.system.target.n_energy
    made_by.sampler_of(replace(trained, tuning=None), replace(made_by.default_choice(), weights="directional", steps=4))
    assert trained.system.target.n_energy - before == 512


def test_kernels_are_fitted_to_a_pilot_that_was_drawn_by_weight(monkeypatch):
    """512 rows whose mean energy is the target's, where that of the sampler's own samples is higher."""
    seen = []
    monkeypatch.setattr(walks, "fitted", lambda kernels, x1, *, generator: seen.append(x1) or kernels)
    made_by, trained = load_trained(generator_path("dw4", recipe="adjoint"))
    made_by.sampler_of(trained, replace(made_by.default_choice(), weights="directional"))
    u, own = trained.system.target.u(seen[0]), made_by.sampler_of(trained, made_by.default_choice())
    raw = trained.system.target.u(own.sample(512, generator=torch.Generator().manual_seed(2)).x)
    truth, effective = trained.system.references["u"].value, 512 * 0.2  # ESS of about a fifth
    assert len(u) == 512 and abs(u.mean() - truth) < 4 * u.std() / effective**0.5 < raw.mean() - truth


def test_what_kernels_were_fitted_to_belongs_to_a_runs_fingerprint(tmp_path):
    run = find_run("dw4", SampleSettings(n=4, weights="directional"), recipe="diffusion", folder=tmp_path)
    other = replace(run, trained=replace(run.trained, tuning=1.1 * run.trained.tuning))
    assert run.fingerprint != other.fingerprint


def test_the_command_line_offers_them_where_they_exist(tmp_path):
    done = call("sample", "dw4", "--recipe", "diffusion", "--weights", "directional", "--steps", "6", "-n", "40", "--out", tmp_path)
    assert done.exit_code == 0, (done.output, done.exception)
    assert store.load_samples(tmp_path / "samples.npz").proposal.cost.jacobian == 240
    refused(call("sample", "dw4", "--recipe", "diffusion", "--weights", "path", "--compiled", "-n", "40", "--out", tmp_path / "c"),
            "which path weights take none of", "--weights directional")
    for recipe, words in (("distill", ("aligned pairs", 'weights = "path"')), ("eqot-fm", ("not 'directional'",))):
        refused(call("sample", "dw4", "--recipe", recipe, "--weights", "directional", "-n", "40", "--out", tmp_path / recipe), *words)
        assert not (tmp_path / recipe).exists()


def test_the_velocity_at_a_maps_heart_is_part_of_the_loss():
    """The part beyond `path_loss` is the mean square distance to the teacher's velocity on the share asked for."""
    model, teacher = AverageVelocity(MLP(1, 2, hidden=8, depth=2, times=2)), MLP(1, 2, hidden=8, depth=2)
    torch.nn.init.normal_(teacher.last.weight)
    x = torch.randn(10, 1, 2, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 0.9, 10)
    batch = PairBatch(t=t, s=t + 0.1, x=x, velocity=torch.ones_like(x), seconds=0.0)
    beyond = path_and_velocity_loss(teacher, share=0.5)(model, batch) - path_loss(model, batch)
    torch.testing.assert_close(beyond, teacher(t[:5], x[:5]).square().mean())  # a new map has U = 0
