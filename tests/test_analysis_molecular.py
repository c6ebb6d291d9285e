"""The analysis scripts on a peptide: Delta F(phi) by every route, another temperature, a trajectory, broken molecules."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ala2 import generated, share_of_left_handed, simulated
from test_analysis import run

from bgwork import analysis, runs, store
from bgwork.analysis import Source, at_temperature, delta_f_of, function_of, known_of, load, log_z_by_mbar, residues_of
from bgwork.export import export_samples
from bgwork.held_out import HELD_OUT_FILE, keep
from bgwork.profiles import free_energy_surface
from bgwork.provenance import file_fingerprint
from bgwork.report import HeldOut
from bgwork.reweighting import weigh
from bgwork.routes import profile_routes
from bgwork.system import System, load_system


@pytest.fixture
def system(tmp_path, monkeypatch) -> System:
    """Alanine dipeptide with reference samples, in a working directory of its own."""
    shutil.copytree(load_system("ala2-vacuum").path, tmp_path / "systems" / "ala2-vacuum")
    monkeypatch.chdir(tmp_path)
    system = load_system("ala2-vacuum")
    store.save_samples(system.path / "reference.npz", simulated(system, 300))
    return system


@pytest.fixture
def folder(system, tmp_path) -> Path:
    """A run with made-up samples whose log q is that of the reference's energy shifted, so that it is known there too."""
    samples = generated(system, 300, noise=0.0)
    samples = replace(samples, proposal=replace(samples.proposal, origin=replace(samples.proposal.origin, config_hash="made-up")))
    store.save_samples(tmp_path / "run" / runs.SAMPLES_FILE, samples)
    reference = store.load_samples(system.path / "reference.npz")
    rows = torch.arange(0, 300, 2)
    meta = {"fingerprint": "made-up", "reference": file_fingerprint(system.path / "reference.npz"), "system": system.name}
    log_q = -system.target.u(reference.x[rows]) + 60.0
    store.save_checkpoint(tmp_path / "run" / HELD_OUT_FILE, {"log_q": log_q, "rows": rows}, meta)
    return tmp_path / "run"


def truth() -> float:
    return math.log(1 / share_of_left_handed() - 1)


def test_the_map_of_phi_and_psi_comes_with_standard_errors(folder, tmp_path):
    """In the JSON as in `free_energy_surface`, over a whole turn; null where nothing was seen."""
    files = ("--json", tmp_path / "m.json", "--png", tmp_path / "m.png")
    result = run("free_energy", folder, "--coordinate", "phi", "--coordinate", "psi", "--bins", 6, *files)
    assert result.exit_code == 0, (result.output, result.exception)
    found, data = json.loads((tmp_path / "m.json").read_text())["surface"]["by_route"], load(Source(path=folder))
    edges = torch.linspace(-math.pi, math.pi, 7, dtype=torch.float64)
    functions = tuple(function_of(data.system, name) for name in ("phi", "psi"))
    expected = free_energy_surface(data.weighted, functions, (edges, edges))
    assert sorted(found) == ["pooled", "reference", "weights"]
    found = found["weights"]
    assert found["edges"] == [edges.tolist()] * 2 and found["outside"] == 0
    for name in ("value", "stderr"):
        got = torch.tensor([[math.nan if v is None else v for v in row] for row in found[name]], dtype=torch.float64)
        wanted = getattr(expected, name)
        torch.testing.assert_close(got, torch.where(torch.isfinite(wanted), wanted, math.nan), equal_nan=True)
    assert "hold weight" in result.output and (tmp_path / "m.png").stat().st_size > 5000


def test_delta_f_by_every_route_and_the_profile_of_phi(folder, tmp_path):
    result = run("free_energy", folder, "--coordinate", "phi", "--bins", 30, "--json", tmp_path / "f.json", "--png", tmp_path / "f.png")
    assert result.exit_code == 0, result.output
    data = load(Source(path=folder))
    torch.testing.assert_close(data.held_out.u + data.log_q, torch.full((150,), 60.0, dtype=torch.float64))
    content = json.loads((tmp_path / "f.json").read_text())
    profiles = {route: torch.tensor([[math.nan if v is None else v for v in found[name]] for name in ("value", "stderr")])
                for route, found in content["profile"]["by_route"].items()}
    assert sorted(profiles) == ["pooled", "reference", "weights"] and content["profile"]["missing"] == {}
    apart = (profiles["pooled"][0] - profiles["reference"][0]) / profiles["reference"][1]
    assert apart[profiles["reference"][1] < 0.5].abs().max() < 4
    found = content["delta_f"]["phi"]["by_route"]
    assert sorted(found) == ["local", "pooled", "reference", "weights"]
    for name in ("weights", "reference", "pooled"):
        assert abs(found[name]["value"] - truth()) < 4 * found[name]["stderr"] < 1.2, name
    assert all(words in " ".join(result.output.split()) for words in ("ln P(elsewhere)", "profile along phi", "-0.2094 to 0 "))
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_samples_of_rare_basins_serve_the_verdict_and_no_average(folder):
    """They come from the run's folder, and are left out at another temperature."""
    data = load(Source(path=folder))
    rows = torch.tensor([k for k in range(len(data.reference)) if k not in set(data.rows.tolist())][:5])
    made_with, known = data.weighted.proposal.origin.config_hash, HeldOut(log_q=data.log_q, rows=data.rows)
    keep(replace(known, rare=HeldOut(log_q=data.log_q[:5].clone(), rows=rows)), folder, data.system, made_with=made_with)
    again = load(Source(path=folder))
    assert torch.equal(known_of(again).rare_rows, rows) and torch.equal(again.held_out.x, data.held_out.x)
    assert known_of(at_temperature(again, 310.0)).rare_rows is None


@pytest.mark.parametrize("temperature", [300.0, 301.0])
def test_pooled_profiles_and_differences_agree(folder, temperature):
    """One bin over the basin of Delta F(phi) holds what the pooled difference says, at another temperature too."""
    data = at_temperature(load(Source(path=folder)), temperature)
    profile = profile_routes(data, "phi", torch.tensor([0.0, 2.0], dtype=torch.float64)).by_route["pooled"]
    share = 2 * math.exp(-profile.value.item())
    assert math.log(1 / share - 1) == pytest.approx(delta_f_of(data)["phi"].by_route["pooled"].value, abs=1e-9)
    weights = profile_routes(data, "phi", torch.tensor([0.0, 2.0], dtype=torch.float64)).by_route["weights"]
    assert abs(profile.value - weights.value).item() < 5 * weights.stderr.item()


def test_basins_are_judged_whatever_observable_is_asked_for(folder, tmp_path):
    """One that was never reached would otherwise go unseen beside a radius of gyration."""
    result = run("observables", folder, "--observable", "radius_of_gyration", "--json", tmp_path / "o.json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads((tmp_path / "o.json").read_text()).values()
    assert sorted(found["basins"]) == ["0", "1"] == sorted(found["basin_reference"])


def test_a_phi_that_cannot_turn_has_no_delta_f(folder, monkeypatch):
    monkeypatch.setattr(analysis, "free_torsions", lambda topology: {})
    assert delta_f_of(load(Source(path=folder))) == {}


def test_another_temperature_moves_samples_and_reference_alike(folder):
    data = load(Source(path=folder))
    warm = at_temperature(data, 310.0)
    factor = 310.0 / 300.0
    torch.testing.assert_close(warm.weighted.u, data.weighted.u / factor)
    torch.testing.assert_close(warm.reference.log_w, -data.reference.u / factor + data.reference.u)
    found = delta_f_of(warm)["phi"]
    assert sorted(found.by_route) == ["pooled", "reference", "weights"] and warm.retargeted.measured.value < 1
    assert found.missing == {"local": "no reference samples were drawn at this temperature"}
    alone = delta_f_of(at_temperature(replace(data, held_out=None, log_q=None, rows=None), 310.0))["phi"]
    assert sorted(alone.by_route) == ["reference", "weights"] and "not known" in alone.missing["pooled"]
    result = run("free_energy", folder, "--temperature", 310)
    assert result.exit_code == 0 and "after the change of temperature" in " ".join(result.output.split())


def test_log_z_by_bar_and_at_another_temperature_by_mbar(folder, tmp_path):
    """log q is -u + 60 at both sets, so that log Z = -60 exactly at 300 K, and at another temperature that of the weights on the pool."""
    for name in ("free_energy", "observables"):
        result = run(name, folder, "--json", tmp_path / "f.json")
        assert result.exit_code == 0, result.output
        content = json.loads((tmp_path / "f.json").read_text())
        content = content["diagnosis"] if name == "free_energy" else content[str(folder)]
        assert content["log_z_bar"]["value"] == pytest.approx(-60.0) and content["forward_ess"]["value"] == pytest.approx(1.0)
        assert "log Z (BAR)" in result.output
    warm = at_temperature(load(Source(path=folder)), 310.0)
    assert known_of(warm).log_q is None and not known_of(warm).estimates, "BAR wants samples drawn at this temperature"
    u = torch.cat([warm.weighted.u, warm.held_out.u])
    log_w = (-u + 310.0 / 300.0 * u - 60.0)
    assert log_z_by_mbar(warm).value == pytest.approx((torch.logsumexp(log_w, 0) - math.log(len(u))).item())
    result = run("free_energy", folder, "--temperature", 310, "--json", tmp_path / "f.json")
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["log_z_mbar"]["value"] == pytest.approx(log_z_by_mbar(warm).value) and content["diagnosis"]["log_z_bar"] is None
    assert "by MBAR" in " ".join(result.output.split())


def test_reference_samples_are_not_compared_with_themselves(system):
    data = load(Source(path=system.path / "reference.npz"))
    assert known_of(data).samples is None and "not compared" in known_of(data).note
    assert log_z_by_mbar(at_temperature(data, 310.0)) is None


def test_clusters_have_no_temperature_and_no_torsions(tmp_path, monkeypatch):
    dw4 = load_system("dw4")
    assert residues_of(dw4) == () and function_of(dw4, "radius_of_gyration") is not None
    with pytest.raises(ValueError, match="unknown observable 'phi'"):
        function_of(dw4, "phi")
    x = dw4.prior.sample(50, generator=torch.Generator().manual_seed(0))
    proposal = simulated(load_system("ala2-vacuum"), 4)
    proposal = replace(proposal, x=x, log_q=-dw4.target.u(x), space=dw4.space, group=None, origin=replace(proposal.origin, system="dw4"))
    store.save_samples(tmp_path / "dw4.npz", proposal)
    result = run("free_energy", tmp_path / "dw4.npz", "--temperature", 350)
    assert result.exit_code == 2 and "dw4 is not a molecule" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["observables", "free_energy"])
def test_a_trajectory_is_read_and_judged(name, system, tmp_path):
    files = export_samples(weigh(simulated(system, 400, seed=7), system.target), system, tmp_path / "md", kind="xtc")
    files[2].unlink()  # an export would be refused
    result = run(name, files[0], "--system", "ala2-vacuum", "--frame-time", 1.0)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "do not trust: virial" in said
    mistaken = run(name, files[0], "--system", "ala2-vacuum", "--frame-time", 1.0, "--top", load_system("ala3-obc2").topology.path)
    assert mistaken.exit_code == 2 and "has 33 atoms" in " ".join(mistaken.output.split())
    bare = run(name, files[0])
    assert bare.exit_code == 2 and "say which --system it is of" in " ".join(bare.output.split())
    wrong = run(name, files[0], "--system", "dw4", "--frame-time", 1.0)
    assert wrong.exit_code == 2 and "dw4 is not a molecule" in " ".join(wrong.output.split())


def test_averages_come_with_what_became_of_the_molecules(system, tmp_path):
    samples = generated(system, 100)
    x = samples.x.clone()
    x[3, 0] += 0.3
    x[4] = -x[4]
    broken = weigh(replace(samples.proposal, x=system.space.project(x)), system.target)
    store.save_samples(tmp_path / "samples.npz", broken)
    result = run("observables", tmp_path / "samples.npz", "--observable", "radius_of_gyration")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "Of 100 samples, 1 have a broken bond, 1 a stereocentre of the wrong hand and 2 the hydrogens of a CH3" in said
