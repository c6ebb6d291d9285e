"""Interrupted sampling goes on where it was, and the samples are those of an uninterrupted one, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flows import made, seed

from bgwork import store
from bgwork.partial import PartialSamples
from bgwork.records import Cost
from bgwork.runs import SampleSettings, draw, find_run
from bgwork.samplers.flow import Flow
from bgwork.store import FileError

N, BATCH = 23, 4


def until(batches):
    """A progress callback that is interrupted when so many batches are done."""
    def on_batch(done, total):
        if done >= batches * BATCH:
            raise KeyboardInterrupt
    return on_batch


def sampled(kept, on_batch=None):
    sampler = made("two hops", batch=BATCH, kept=kept, on_batch=on_batch)
    with kept:
        return sampler.sample(N, generator=seed())


def interrupted(folder, *, interval):
    kept = PartialSamples(folder=folder, fingerprint="one", interval=interval)
    with pytest.raises(KeyboardInterrupt):
        sampled(kept, until(3))
    return kept


@pytest.fixture
def pushes(monkeypatch):
    """Sizes of the batches that are computed."""
    sizes, push = [], Flow.push
    monkeypatch.setattr(Flow, "push", lambda self, z: (sizes.append(len(z)), push(self, z))[1])
    return sizes


def test_sampling_goes_on_bit_for_bit(tmp_path, pushes):
    whole = made("two hops", batch=BATCH).sample(N, generator=seed())
    assert sum(pushes) == N
    interrupted(tmp_path, interval=1e9)  # leaving the context writes, if nothing else does
    again = PartialSamples(folder=tmp_path, fingerprint="one")
    assert 3 * BATCH <= again.found < N and again.spent.seconds > 0 and again.spent.core_seconds > 0
    pushes.clear()
    proposal = sampled(again)
    assert sum(pushes) == N - again.found
    for name in ("x", "log_q", "sign"):
        assert torch.equal(getattr(proposal, name), getattr(whole, name))
    assert replace(proposal.certificate, round_trip_error=0.0) == replace(whole.certificate, round_trip_error=0.0)
    assert proposal.cost.seconds > again.spent.seconds and proposal.cost.core_seconds > again.spent.core_seconds
    assert proposal.cost.network == whole.cost.network


def test_a_crash_costs_what_was_drawn_since_the_last_write(tmp_path):
    kept = PartialSamples(folder=tmp_path, fingerprint="one", interval=0.0)
    made("two hops", batch=BATCH, kept=kept).sample(N, generator=seed())  # never leaves a context
    assert PartialSamples(folder=tmp_path, fingerprint="one").found == N


def test_nothing_is_written_before_its_time_or_without_a_batch(tmp_path):
    kept = PartialSamples(folder=tmp_path, fingerprint="one", interval=1e9)
    sampled(kept)
    assert not kept.path.exists()
    with pytest.raises(KeyboardInterrupt), PartialSamples(folder=tmp_path, fingerprint="one"):
        raise KeyboardInterrupt
    assert not kept.path.exists()


def test_batches_of_other_settings_are_not_taken_up(tmp_path, pushes):
    interrupted(tmp_path, interval=0.0)
    pushes.clear()
    other = PartialSamples(folder=tmp_path, fingerprint="another")
    sampled(other)
    assert other.found == 0 and other.others > 0 and other.spent == Cost() and sum(pushes) == N


def test_another_batch_size_does_not_take_rows_for_its_own(tmp_path):
    interrupted(tmp_path, interval=0.0)
    kept = PartialSamples(folder=tmp_path, fingerprint="one")
    proposal = made("two hops", batch=5, kept=kept).sample(N, generator=seed())
    assert torch.allclose(proposal.x, made("two hops", batch=5).sample(N, generator=seed()).x, rtol=0, atol=1e-12)


def test_a_damaged_file_is_told(tmp_path):
    kept = interrupted(tmp_path, interval=0.0)
    kept.path.write_bytes(kept.path.read_bytes()[:50])
    with pytest.raises(FileError, match="samples.part.safetensors"):
        PartialSamples(folder=tmp_path, fingerprint="one")


def test_a_run_says_so_goes_on_and_leaves_no_part_behind(tmp_path, pushes):
    settings, notes = SampleSettings(n=200, seed=3, steps=2), []
    run, fresh = (find_run("dw4", settings, recipe="eqot-fm", folder=tmp_path / name) for name in ("a", "b"))

    def stop(done, total):
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(run, progress=stop, note=notes.append)
    held = PartialSamples(folder=run.folder, fingerprint=run.fingerprint)
    assert held.found >= 100 and not notes and not (run.folder / "samples.npz").exists()
    pushes.clear()
    proposal = draw(run, progress=lambda *_: None, note=notes.append)
    assert notes == [f"going on after {held.found} samples that were drawn before an interruption"] and sum(pushes) == 200 - held.found
    assert not held.path.exists() and torch.equal(store.load_samples(run.folder / "samples.npz").x, proposal.x)
    assert torch.equal(proposal.log_q, draw(fresh, progress=lambda *_: None, note=notes.append).log_q)


def test_batches_of_other_settings_are_not_replaced_without_a_word(tmp_path):
    run = find_run("dw4", SampleSettings(n=20, seed=3, steps=2), recipe="eqot-fm", folder=tmp_path)
    interrupted(tmp_path, interval=0.0)
    left, notes = PartialSamples(folder=tmp_path, fingerprint="another"), []
    draw(run, progress=lambda *_: None, note=notes.append)
    assert left.others >= 3 * BATCH and len(notes) == 1 and f"{left.path}: its {left.others} samples" in notes[0]


def test_a_run_stays_what_it_was_while_the_system_s_file_is_edited(toy):
    """Its density at the reference samples, evaluated after the drawing, belongs to what was drawn."""
    run = find_run("toy", SampleSettings(n=20), folder=toy.root / "run")
    before, path = run.fingerprint, toy.system / "system.toml"
    path.write_text(path.read_text() + "# a remark\n")
    assert run.fingerprint == before
    assert find_run("toy", SampleSettings(n=20), folder=toy.root / "run").fingerprint != before
