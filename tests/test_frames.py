"""The frame of a molecule: the best turn, how it follows the configuration, and where it is ambiguous."""

from __future__ import annotations

import tomllib

import pytest
import torch
from simple_fields import randomise

from bgwork import store
from bgwork.couplings import random_turns, turn_between
from bgwork.fields.framed import Framed
from bgwork.fields.frames import Frame
from bgwork.fields.multihop import MultiHop, MultiHopConfig
from bgwork.generators import load_generator
from bgwork.recipes import Request, parse_recipe
from bgwork.system import load_system, reference_samples

N = 5


def frame(seed=0):
    return Frame(torch.randn(N, 3, generator=torch.Generator().manual_seed(seed)), length=1.0).double()


def configurations(size, seed=1):
    return torch.randn(size, N, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def framed(seed=0):
    inner = MultiHop(N, 3, MultiHopConfig(hidden=8, message=6, vectors=4, hops=1, node_hidden=10, n_basis=6))
    return randomise(Framed(inner, frame(), hidden=16, depth=2), seed=seed)


def seen_from_frame(derivative, turn):
    """d/dx [..., n, 3] of each configuration as d/dy."""
    return torch.stack([part @ R for part, R in zip(derivative, turn, strict=True)])


def test_the_turn_is_that_of_kabsch_and_no_reflection():
    x = configurations(200)
    f = frame()
    turned = f(x)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(turned.turn, turn_between(centred, f.Y.expand_as(x)), rtol=0, atol=1e-9)
    torch.testing.assert_close(turned.y, centred @ turned.turn, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(turned.turn), torch.ones(200, dtype=torch.float64))
    again = f(x @ random_turns(200, 3, generator=torch.Generator().manual_seed(3)) + 0.4)
    torch.testing.assert_close(again.y, turned.y, rtol=0, atol=1e-9)
    torch.testing.assert_close(again.fade, turned.fade, rtol=0, atol=1e-9)


def test_derivatives_of_turn_and_fade_equal_autograd():
    f, x = frame(), configurations(6)
    turned = f(x)
    of_y = torch.autograd.functional.jacobian(lambda z: f(z).y.sum(0).flatten(), x).transpose(0, 1)
    projection = torch.eye(3 * N, dtype=torch.float64).view(-1, N, 3)
    projection = (projection - projection.mean(1, keepdim=True)).flatten(1)
    torch.testing.assert_close(projection + f.generators(turned.y) @ f.following(turned), seen_from_frame(of_y, turned.turn).flatten(2),
                               rtol=1e-9, atol=1e-9)
    of_fade = torch.autograd.functional.jacobian(lambda z: f(z).fade.sum(), x)
    assert of_fade.abs().max() > 1e-3
    torch.testing.assert_close(f.fading(turned), seen_from_frame(of_fade, turned.turn), rtol=1e-9, atol=1e-11)


def ambiguous(f, hair):
    """Two configurations a hair to either side of one for which half a circle about the first axis makes no difference to the fit."""
    onto = f.Y @ torch.linalg.inv(f.Y.T @ f.Y)
    covariance = [torch.diag(torch.tensor([1.5, 0.4 + side, -0.4 + side], dtype=torch.float64)) for side in (hair, -hair)]
    return onto @ torch.stack(covariance)


def test_a_framed_field_is_smooth_where_the_turn_is_ambiguous():
    """Two configurations a hair apart, their best turns half a circle apart: the field hardly differs, as its fade vanishes."""
    field = framed()
    x = ambiguous(field.frame, 1e-5)
    turned = field.frame(x)
    assert (turned.turn[0] - turned.turn[1]).abs().max() > 0.5 and turned.fade.max() < 1e-6
    t = torch.tensor(0.5, dtype=torch.float64)
    v, jacobian = field.value_and_jacobian(t, x)
    torch.testing.assert_close(v[0], v[1], rtol=0, atol=1e-3)
    assert jacobian.abs().max() < 1e3
    field.frame.length = 1e-9
    sharp = field(t, x)
    assert field.frame(x).fade.min() > 0.99 and (sharp[0] - sharp[1]).abs().max() > 1e-2


def test_a_measured_template_is_the_mean_of_what_is_turned_onto_it():
    system = load_system("ala2-vacuum")
    f = Frame(system.structure, length=system.prior.std)
    x = reference_samples(system).x[:500]
    before = f(x).y.sub(f.Y).square().mean()
    f.measure(x)
    turned = f(x)
    torch.testing.assert_close(turned.y.mean(0), f.Y, rtol=0, atol=1e-4)
    assert turned.y.sub(f.Y).square().mean() < before


def test_frames_are_taken_in_double_precision_under_autocast():
    f, x = frame().float(), configurations(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        turned = f(x.float())
    torch.testing.assert_close(turned.y, f(x.float()).y, rtol=0, atol=0)
    torch.testing.assert_close(turned.y, f(x).y, rtol=0, atol=1e-5)


def test_a_template_of_another_molecule_is_refused():
    with pytest.raises(ValueError, match=r"template of shape \[5, 3\] does not fit a field of 4 particles"):
        Framed(MultiHop(4, 3), frame(), hidden=8, depth=1)


def recipe_values(system, **training):
    values = tomllib.loads((system.path / "recipes" / "fm-more.toml").read_text())
    values["field"] |= {"kind": "framed-molecular", "frame_hidden": 16, "frame_depth": 2}
    return values | {"training": {"steps": 1, "initial": "fm-more", **training}}


def test_a_refinement_starts_as_the_generator_without(tmp_path):
    """Also on a logarithmic scale of times; and a framed generator goes on as it is."""
    system = load_system("ala2-vacuum")
    values, data = recipe_values(system), reference_samples(system).x[:50]
    values["field"]["nearest"] = 0.003
    request = Request(system=system, name="framed", folder=tmp_path, data=data.float(), seed=0)
    network = parse_recipe(values, source="framed.toml").job(request).model
    t = torch.tensor([0.1, 0.98])
    torch.testing.assert_close(network(t, data[:2]), load_generator("ala2-vacuum", recipe="fm-more").field(t, data[:2]), rtol=0, atol=1e-5)
    measured = Frame(system.structure, length=system.prior.std)
    measured.measure(data.float())
    torch.testing.assert_close(network.frame.Y, measured.Y, rtol=0, atol=1e-6)
    randomise(network, size=0.01).float()
    store.save_checkpoint(tmp_path / "own.safetensors", dict(network.state_dict()), {})
    values["training"]["initial"] = str(tmp_path / "own.safetensors")
    again = parse_recipe(values, source="framed.toml").job(request).model
    torch.testing.assert_close(again(t, data[:2]), network(t, data[:2]), rtol=0, atol=0)


def test_a_framed_field_for_particles_without_a_topology_is_refused(tmp_path):
    values = recipe_values(load_system("ala2-vacuum"))
    values["training"].pop("initial")
    request = Request(system=load_system("lj13"), name="framed", folder=tmp_path, data=torch.randn(50, 13, 3), seed=0)
    with pytest.raises(ValueError, match="lj13 has no topology; a framed-molecular field needs one"):
        parse_recipe(values, source="framed.toml").job(request)
