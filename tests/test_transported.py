"""Another energy's data as weighted samples: which rows, with which weights, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from commands import call, refused
from maps import lay_out, trained

from bgwork import store
from bgwork.reweighting import expectation, weigh
from bgwork.runs import RunError, weighted_samples
from bgwork.samplers.transport import rows_to_learn
from bgwork.system import load_system, reference_samples
from bgwork.transported import Rows, evenly_drawn, find_transport


@pytest.fixture(scope="module")
def systems():
    return load_system("ala2-vacuum"), load_system("ala2-obc2")


@pytest.fixture
def beside_data(tmp_path, monkeypatch):
    """A working directory with data of ala2-vacuum, and recipes for ala2-obc2."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)


def test_moved_configurations_carry_the_change_of_volume(systems, beside_data):
    trained()
    found = find_transport("made", rows=Rows(n=5))
    proposal = found.sample(None, kept=None)
    assert "5 configurations of ala2-vacuum" in proposal.note and "; 500 that it was learned on are left out" in proposal.note
    with torch.no_grad():
        image, log_det = found.map(found.source.x)
    torch.testing.assert_close(proposal.x, image)
    torch.testing.assert_close(proposal.log_q, -systems[0].target.u(found.source.x) - log_det, rtol=0, atol=1e-3)


def test_data_of_an_independent_run_are_weighed_as_a_whole(beside_data):
    """No row is left out of data that the map has never seen; rows of its own are, under another name too; another energy's are refused."""
    trained()
    data = reference_samples(load_system("ala2-vacuum"))
    store.save_samples(Path("part.npz"), data.take(torch.arange(0, len(data), 2)))
    part = find_transport("made", rows=Rows(data=Path("part.npz")))
    assert part.left_out == int(rows_to_learn(data)[::2].sum()) > 100 and len(part.source) == len(data) // 2 - part.left_out
    store.save_samples(Path("other.npz"), data.take(~rows_to_learn(data)))
    found = find_transport("made", rows=Rows(data=Path("other.npz")))
    assert found.left_out == 0 and len(found.source) == int((~rows_to_learn(data)).sum()) and found.settings["data"] == "other.npz"
    moved = call("transport", "made", "-n", "40", "--data", "other.npz", "--out", "moved")
    assert moved.exit_code == 0 and len(weighted_samples(Path("moved"))) == 40, (moved.output, moved.exception)
    refused(call("transport", "made", "--data", str(load_system("ala2-obc2").path / "reference.npz")), "of ala2-obc2, not of ala2-vacuum")
    refused(call("transport", "made", "--data", "nothing.npz"), "no data at nothing.npz")


def test_equal_shares_of_basins_change_no_average(systems):
    """The rare basin as a whole, the populations as they were, and an error bar that knows how uncertain those are."""
    system, data = systems[0], reference_samples(systems[0])
    rare = system.functions["phi_positive"](data.x).bool()
    drawn = weigh(evenly_drawn(data, system, 600), system.target)
    assert int(system.functions["phi_positive"](drawn.proposal.x).sum()) == min(300, int(rare.sum())) and len(drawn) == 600
    names = ("phi_positive", "radius_of_gyration")
    share, size = (expectation(drawn, system.functions[name]) for name in names)
    known_share, known_size = (expectation(weigh(data, system.target), system.functions[name]) for name in names)
    assert share.value == pytest.approx(float(rare.double().mean()), rel=1e-5)
    assert known_share.stderr / 1.5 < share.stderr < 3 * known_share.stderr
    assert abs(size.value - known_size.value) < 4 * size.stderr


def test_equal_shares_are_transported_and_need_a_number(beside_data):
    trained()
    moved = call("transport", "made", "-n", "60", "--even", "--out", "moved")
    assert moved.exit_code == 0, (moved.output, moved.exception)
    weighted = weighted_samples(Path("moved"))
    assert "equal shares of basins" in weighted.proposal.note and 20 <= load_system("ala2-obc2").functions["phi_positive"](
        weighted.proposal.x).sum() <= 40
    refused(call("transport", "made", "--even"), "need a number (-n)")
    refused(call("transport", "made", "--even", "-n", "1"), "1 configurations leave out some of 2 basins")
    refused(call("transport", "made", "--even", "-n", "0"), "0")


def test_what_cannot_be_transported_is_refused(beside_data):
    trained()
    with pytest.raises(RunError, match="has objective 'flow-matching' and no map"):
        find_transport("ala2-vacuum")
    refused(call("transport", "made", "-n", "3000"), "3000 configurations are asked for", "ala2-vacuum has 1500")
    refused(call("transport", "made", "-n", "0"), "0")
    tensors, meta = store.load_checkpoint(Path("made/generator.safetensors"))
    store.save_checkpoint(Path("made/generator.safetensors"), tensors, {k: v for k, v in meta.items() if k != "start_data"})
    refused(call("transport", "made"), "does not say which data its map was learned on")
    store.save_checkpoint(Path("made/generator.safetensors"), tensors, meta)
    shutil.rmtree("runs/ala2-vacuum")
    refused(call("transport", "made"), "bgwork reference ala2-vacuum")
