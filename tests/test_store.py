"""Files: round trips, atomic writes, and that reading never executes code."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from bgwork import store
from bgwork.records import Certificate, Cost, Density, Origin, Proposal, WeightedSamples
from bgwork.spaces import MeanFree


def proposal(n: int = 5) -> Proposal:
    generator = torch.Generator().manual_seed(0)
    space = MeanFree(n=4, d=2)
    x = space.project(torch.randn(n, 4, 2, generator=generator, dtype=torch.float64))
    return Proposal(
        x=x, log_q=torch.randn(n, generator=generator, dtype=torch.float64), space=space, density=Density.EXACT,
        origin=Origin(method="flow", system="dw4", seed=7, config_hash="ab", commit="cd", edits=("first edit",)),
        cost=Cost(network=10, jacobian=5, seconds=0.5), group=torch.arange(n), sign=torch.ones(n), ancestor=torch.arange(n) // 2,
        certificate=Certificate(n=n, n_negative=0, n_round_trip=3), note="a note")


def weighted() -> WeightedSamples:
    drawn = proposal()
    u = torch.tensor([1.0, float("inf"), float("nan"), -2.0, 0.0], dtype=torch.float64)
    return WeightedSamples(proposal=drawn, u=u, target="double-well")


def assert_same(a: object, b: object) -> None:
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
        elif dataclasses.is_dataclass(left):
            assert_same(left, right)
        else:
            assert left == right or (left != left and right != right), field.name


@pytest.mark.parametrize("samples", [proposal(), weighted(), dataclasses.replace(proposal(), group=None, sign=None, certificate=None)])
def test_samples_come_back_as_they_went(tmp_path, samples):
    store.save_samples(tmp_path / "samples.npz", samples)
    back = store.load_samples(tmp_path / "samples.npz")
    assert type(back) is type(samples)
    assert_same(samples, back)


def test_checkpoint_comes_back_as_it_went(tmp_path):
    tensors = {"w": torch.randn(3, 2).T, "step": torch.tensor(4)}
    store.save_checkpoint(tmp_path / "c.safetensors", tensors, {"system": "dw4", "loss": float("nan"), "origin": proposal().origin})
    back, meta = store.load_checkpoint(tmp_path / "c.safetensors")
    assert set(back) == set(tensors) and all(torch.equal(back[k], tensors[k]) for k in tensors)
    assert meta["system"] == "dw4" and meta["loss"] is None and meta["origin"]["edits"] == ["first edit"]


def test_json_has_no_nan(tmp_path):
    store.write_json(tmp_path / "a.json", {"a": float("inf"), "b": [Density.EXACT, 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": ["exact", 1.5]}
    assert store.read_json(tmp_path / "a.json")["b"] == ["exact", 1.5]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    store.write_text(path, "old")

    def write(temporary):
        temporary.write_text("half of the n")
        raise error

    with pytest.raises((RuntimeError, KeyboardInterrupt, store.FileError)):
        store.write_atomically(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failing_write_removes_the_folders_made_for_it_and_no_others(tmp_path, error):
    (tmp_path / "mine").mkdir()

    def write(temporary):
        raise error

    with pytest.raises((RuntimeError, KeyboardInterrupt, store.FileError)):
        store.write_atomically(tmp_path / "mine" / "new" / "newer" / "a.txt", write)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_folders_stay_if_something_else_came_to_lie_in_them(tmp_path):
    def write(temporary):
        (temporary.parent.parent / "theirs.txt").write_text("of another process")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.write_atomically(tmp_path / "new" / "newer" / "a.txt", write)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "theirs.txt"]


def test_trying_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    store.ensure_writable(tmp_path / "new" / "newer")
    assert not os.listdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(store.FileError, match="choose another output folder"):
        store.ensure_writable(tmp_path / "file" / "below")
    assert os.listdir(tmp_path) == ["file"]


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def npz_with_pickle(path, bomb) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x", "log_q", "meta"):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.array([bomb], dtype=object), allow_pickle=True)
            archive.writestr(f"{name}.npy", member.getvalue())


def bare_pickle(path, bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def torch_pickle(path, bomb) -> None:
    torch.save({"w": torch.zeros(2), "bomb": bomb}, path)


@pytest.mark.parametrize("write", [npz_with_pickle, bare_pickle, torch_pickle])
@pytest.mark.parametrize("read", [store.load_samples, store.load_checkpoint])
def test_a_pickle_is_refused_and_not_executed(tmp_path, write, read):
    path, crater = tmp_path / "file", tmp_path / "crater"
    write(path, Bomb(str(crater)))
    with pytest.raises(store.FileError, match="file"):
        read(path)
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(str(crater))))
    assert crater.exists(), "the bomb must be live, or this test proves nothing"


def test_truncated_files_are_refused(tmp_path):
    store.save_samples(tmp_path / "s.npz", weighted())
    store.save_checkpoint(tmp_path / "c.safetensors", {"w": torch.zeros(1000)}, {})
    for name, read in (("s.npz", store.load_samples), ("c.safetensors", store.load_checkpoint)):
        whole = (tmp_path / name).read_bytes()
        for keep in (0, 4, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:keep])
            with pytest.raises(store.FileError, match=name):
                read(tmp_path / name)


def test_missing_files_say_so(tmp_path):
    for read in (store.load_samples, store.load_checkpoint, store.read_json):
        with pytest.raises(store.FileError, match="nowhere"):
            read(tmp_path / "nowhere")


def test_samples_without_log_q_are_refused(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.zeros((3, 4, 2)), meta=np.array("{}"))
    with pytest.raises(store.FileError, match="log_q"):
        store.load_samples(tmp_path / "s.npz")


def test_foreign_safetensors_are_refused(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "c.safetensors")
    with pytest.raises(store.FileError, match="not written by bgwork"):
        store.load_checkpoint(tmp_path / "c.safetensors")


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")  # a file where a folder should be stops root as well
    with pytest.raises(store.FileError, match="cannot write in .*file"):
        store.write_text(tmp_path / "file" / "a.txt", "text")


@pytest.mark.parametrize(("x", "words"), [
    (np.zeros((5, 8)), r"shape \(5, 8\), expected \[N, n, d\]"), (np.ones((5, 4, 2)), r"1 away from MeanFree.*project"),
    (np.array(["a"] * 5), "s.npz")])
def test_configurations_that_are_none_of_the_space_are_refused(tmp_path, x, words):
    path = tmp_path / "s.npz"
    store.save_samples(path, weighted())
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"x": x}))
    with pytest.raises(store.FileError, match=words):
        store.load_samples(path)
