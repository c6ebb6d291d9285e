"""Fitted kernels are kept between commands: bit for bit, for the same inputs only, and never if the file is not what was written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bgwork import store
from bgwork.generators import generator_path, load_trained
from bgwork.priors import Gaussian
from bgwork.recipes import diffusion, distill
from bgwork.recipes.widths import FittedWidths, digest

OF = FittedWidths.of  # before tests/conftest.py turns it off
KINDS = [("diffusion", "path"), ("diffusion", "directional"), ("distill", "path"), ("distill-diffusion", "directional")]


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """The folder of kept fits, empty."""
    monkeypatch.setattr(FittedWidths, "of", OF)
    monkeypatch.setenv("BGWORK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "widths"


@pytest.fixture
def fits(monkeypatch) -> list[str]:
    """Names of the fits that were made."""
    made: list[str] = []

    def counted(name: str, fit: object) -> object:
        return lambda *args, **settings: made.append(name) or fit(*args, **settings)

    for module, name in ((diffusion, "tuned"), (diffusion, "fitted"), (distill, "tuned_to_data"), (distill, "tuned_to_energy")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return made


def drawn(recipe: str = "diffusion", weights: str = "path", *, steps: int = 2, edit=lambda trained: trained) -> torch.Tensor:
    """log q of a few paths by a generator of DW4, loaded anew, its fits short."""
    made_by, trained = load_trained(generator_path("dw4", recipe=recipe))
    if hasattr(made_by.sampler, "tuning"):
        made_by = made_by.model_copy(update={"sampler": made_by.sampler.model_copy(update={"tuning": 2, "paths": 16})})
    trained = edit(replace(trained, tuning=trained.tuning[:32]))
    sampler = made_by.sampler_of(trained, replace(made_by.default_choice(), steps=steps, weights=weights))
    return sampler.sample(20, generator=torch.Generator().manual_seed(0)).log_q


@pytest.mark.parametrize(("recipe", "weights"), KINDS)
def test_the_second_time_nothing_is_fitted_and_no_bit_differs(kept, fits, recipe, weights):
    without = drawn(recipe, weights, edit=lambda trained: replace(trained, widths=None))
    assert len(fits) == 1 and not kept.exists()
    first, second = drawn(recipe, weights), drawn(recipe, weights)
    assert len(fits) == 2 and len(list(kept.iterdir())) == 1
    assert torch.equal(without, first) and torch.equal(first, second)


def other_network(trained):
    with torch.no_grad():
        next(trained.network.parameters()).mul_(1.0 + 1e-6)
    return trained


def one_more_bit(trained):
    x = trained.tuning.clone()
    x[3, 2, 1] = torch.nextafter(x[3, 2, 1], torch.tensor(torch.inf).to(x))
    return replace(trained, tuning=x)


@pytest.mark.parametrize("change", [
    {"steps": 3}, {"weights": "directional"}, {"recipe": "distill-diffusion", "weights": "directional"}, {"edit": other_network},
    {"edit": one_more_bit}, {"edit": lambda trained: replace(trained, tuning=trained.tuning.flip(0))},
    {"edit": lambda trained: replace(trained, prior=Gaussian(space=trained.prior.space, std=1.001 * trained.prior.std))},
    {"edit": lambda trained: replace(trained, widths=replace(trained.widths, generator="another"))}])
def test_another_input_is_another_fit(kept, fits, change):
    drawn()
    changed = drawn(**change)
    assert len(fits) == 2 and len(list(kept.iterdir())) == 2
    unkept = change.get("edit", lambda trained: trained)
    assert torch.equal(changed, drawn(**change | {"edit": lambda trained: replace(unkept(trained), widths=None)}))


@pytest.mark.parametrize("name", ["code", "versions"])
def test_other_code_or_versions_fit_anew(kept, fits, monkeypatch, name):
    drawn()
    monkeypatch.setattr(f"bgwork.recipes.widths.{name}", lambda: "another")
    drawn()
    assert len(fits) == 2 and len(list(kept.iterdir())) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    """One bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


def of_other_steps(path: Path) -> None:
    drawn(steps=3)
    (other,) = (each for each in path.parent.iterdir() if each != path)
    shutil.copy(other, path)


def without_widths(path: Path) -> None:
    store.save_checkpoint(path, {"weights": torch.zeros(2)}, {"kind": "generator"})


@pytest.mark.parametrize(("damage", "words"), [
    (cut, "not a complete safetensors file"), (flip, "holds something else"), (of_other_steps, "holds something else"),
    (without_widths, "holds something else"), (lambda path: path.write_text("{}"), "not a complete safetensors file")])
def test_a_file_that_is_not_what_was_written_is_replaced_and_never_used(kept, fits, damage, words):
    whole = drawn()
    (path,) = kept.iterdir()
    content = path.read_bytes()
    damage(path)
    before = len(fits)
    with pytest.warns(UserWarning, match=rf"kernels are fitted again, since .*{path.name} cannot be used \(.*{words}"):
        assert torch.equal(drawn(), whole)
    assert len(fits) == before + 1 and path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(kept, fits):
    kept.parent.write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="fitted kernels are not kept.* or set BGWORK_CACHE"):
        first = drawn()
    with pytest.warns(UserWarning, match="not kept"):
        assert torch.equal(drawn(), first)
    assert len(fits) == 2


def test_what_is_fitted_to_the_energy_is_not_kept(kept, fits):
    drawn("distill", edit=lambda trained: replace(trained, tuning=None))
    assert fits == ["tuned_to_energy"] and not kept.exists()


def test_digests_tell_apart_what_looks_alike():
    x = torch.arange(6.0)
    parts = [x, x.double(), x.view(2, 3), (x,), [x], (x, x), ("ab", "c"), ("a", "bc"), 1, "1", 1.0, None, torch.nn.Linear(2, 3)]
    assert len({digest(part) for part in parts}) == len(parts)
    assert digest((x, "a")) == digest((x.clone(), "a"))
