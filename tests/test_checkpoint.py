"""Checkpoints: everything comes back, nothing is executed, and every kind of damage is named."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

import scoresde
from scoresde import UsageError, checkpoint
from tests.checkpoints import make_model, rewrite, write


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "step-17.safetensors"
    write(file, make_model())
    return file


@pytest.mark.parametrize("which", ["ema", "weights"])
def test_a_file_gives_back_the_same_model(device, tmp_path, which):
    model, other = make_model(device), make_model(device)
    write(tmp_path / "c.safetensors", model, other)
    loaded = checkpoint.load(tmp_path / "c.safetensors")
    back = loaded.model(which).to(device)
    x, labels = torch.randn(3, 1, 5, 4, device=device), torch.tensor([0, 2, 1], device=device)
    expected = (model if which == "ema" else other).denoise(x, 0.3, labels)
    assert torch.equal(back.denoise(x, 0.3, labels), expected.detach())
    assert (loaded.step, loaded.description["config"]) == (17, {"seed": 4})
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())


def test_no_temporary_file_is_left(path):
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch, fails):
    def fail(*_):
        raise OSError("no space left")

    before = path.read_bytes()
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="no space left"):
        write(path, make_model())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.safetensors.*no such file"):
        checkpoint.load(tmp_path / "gone.safetensors")
    with pytest.raises(UsageError, match="no such file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.2, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_named(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused(path, seed):
    generator = torch.Generator().manual_seed(seed)
    path.write_bytes(bytes(torch.randint(256, (5000,), generator=generator).tolist()))
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"scoresde": "{"}, {"scoresde": "[1]"}, {"scoresde": '{"format": "another"}'}]
)
def test_a_foreign_safetensors_file_is_refused(path, metadata):
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*not a checkpoint of this library"):
        checkpoint.load(path)


@pytest.mark.parametrize("part", ["step", "models", "data", "config"])
def test_a_header_without_a_part_or_with_a_wrong_one_is_refused(path, part):
    loaded = checkpoint.load(path)
    header = {**loaded.description, part: "nonsense"}
    rewrite(path, header, loaded.tensors)
    with pytest.raises(UsageError, match=rf"step-17\.safetensors.*{part}='nonsense'"):
        checkpoint.load(path)
    del header[part]
    rewrite(path, header, loaded.tensors)
    if part in ("data", "config"):  # a model alone has none
        assert checkpoint.load(path).step == 17
        return
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*not a checkpoint"):
        checkpoint.load(path)


def test_a_file_of_the_earlier_format_is_refused_with_the_remedy(path):
    loaded = checkpoint.load(path)
    rewrite(path, {"format": "scoresde checkpoint 1", "step": 3, "model": {}}, loaded.tensors)
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*written by scoresde 0\.1.*train it again") as error:
        scoresde.load_model(path)
    assert "\n" not in str(error.value)


TAMPERED = {
    "step": lambda header, tensors: header.update(step=18),
    "an argument": lambda header, tensors: header["models"]["score"]["sde"].update(beta_max=16.0),
    "data": lambda header, tensors: header["data"].update(high=3.0),
    "config": lambda header, tensors: header["config"].update(seed=5),
    "another field": lambda header, tensors: header.update(note="a note"),
    "a weight": lambda header, tensors: tensors["ema.score.network.last.bias"].add_(1e-3),
    "a name": lambda header, tensors: tensors.update(other=tensors.pop("ema.score.network.last.bias")),
    "a type": lambda header, tensors: tensors.update({k: v.half() for k, v in tensors.items()}),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_the_digest_tells_every_change_of_header_or_tensors(path, change):
    loaded = checkpoint.load(path)
    header, tensors = loaded.description, dict(loaded.tensors)
    rewrite(path, header, tensors, digest=False)
    assert checkpoint.load(path).digest == loaded.digest  # written again as it is
    change(header, tensors)
    rewrite(path, header, tensors, digest=False)
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*its checksum does not fit; use an earlier one"):
        checkpoint.load(path)


def test_a_description_cannot_replace_the_header_s_own_fields(path):
    loaded = checkpoint.load(path)
    stale = {**loaded.description, "step": 3, "format": "another", "digest": "0"}
    checkpoint.save(path, 18, stale, loaded.tensors)
    assert checkpoint.load(path).step == 18


def test_weights_that_do_not_exist_are_named(path):
    with pytest.raises(UsageError, match=r"weights='emma': need 'ema'.* or 'weights'"):
        checkpoint.load(path).model("emma")


def test_a_run_s_checkpoint_loads_as_its_averaged_model(path, tmp_path):
    model, other = make_model(), make_model()
    write(tmp_path / "c.safetensors", model, other)
    state = scoresde.load_model(tmp_path / "c.safetensors").state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("network", {"name": "UNett"}, r"models\.score\.network\.name 'UNett': did you mean 'UNet'"),
        ("network", {"name": "VPSDE"}, r"unknown models\.score\.network\.name 'VPSDE'"),
        ("network", {"name": None}, r"models\.score\.network\.name"),
        ("network", {"chanels": 3}, r"argument of UNet in models\.score\.network: 'chanels': did you mean 'channels'"),
        ("network", {"channels": "many"}, r"models\.score\.network\.channels='many': need a value like 16"),
        ("network", {"channels": 0}, r"channels=0 of UNet: need at least 1"),
        ("network", {"channels": 8}, r"tensors do not fit"),
        ("network", {"num_classes": 0}, r"tensors do not fit"),
        ("sde", {"beta_min": -1.0}, r"beta_min=-1\.0"),
        ("sde", {"name": "os.system"}, r"models\.score\.sde\.name 'os\.system'"),
        ("parametrization", {"sigma_data": None}, r"models\.score\.parametrization\.sigma_data=None: need a value"),
        ("parametrization", {"input": {"name": "Scaling"}}, r"models\.score\.parametrization\.input\.name 'Scaling'"),
        ("codec", {"name": "os.system"}, r"models\.score\.codec\.name 'os\.system'"),
        ("codec", {"scale": 0.0}, r"scale=0\.0 of Scaling"),
    ],
)
def test_a_header_that_describes_no_model_is_named(path, part, change, message):
    loaded = checkpoint.load(path)
    header = loaded.description
    header["models"]["score"][part] |= change
    rewrite(path, header, loaded.tensors)
    with pytest.raises(UsageError, match=message):
        checkpoint.load(path).model()


@pytest.mark.parametrize("part", ["network", "sde", "parametrization", "shape", "codec"])
def test_a_header_with_half_a_model_is_named(path, part):
    for value in (None, 3):
        loaded = checkpoint.load(path)
        loaded.description["models"]["score"][part] = value
        with pytest.raises(UsageError, match=rf"models\.score\.{part}={value}"):
            loaded.model()
    loaded.description["models"]["score"] = 3
    with pytest.raises(UsageError, match=r"models\.score\.network=None"):
        loaded.model()


@pytest.mark.parametrize("shape", [["a"], [0], [1.5], "15"])
def test_a_shape_that_is_none_is_named(path, shape):
    loaded = checkpoint.load(path)
    loaded.description["models"]["score"]["shape"] = shape
    with pytest.raises(UsageError, match="shape="):
        loaded.model()


def test_missing_tensors_are_named(path):
    loaded = checkpoint.load(path)
    bias = loaded.tensors.pop("ema.score.network.last.bias")
    with pytest.raises(UsageError, match=r"do not fit.*network\.last\.bias"):
        loaded.model()
    loaded.tensors["ema.score.network.last.bias"] = bias.long()
    with pytest.raises(UsageError, match="do not fit") as error:
        loaded.model()
    assert "\n" not in str(error.value)


def test_a_model_that_the_file_does_not_hold_is_named(path):
    with pytest.raises(UsageError, match=r"model='teacher': .*step-17\.safetensors.* holds the models score"):
        checkpoint.load(path).model(name="teacher")
    with pytest.raises(UsageError, match="model='teacher'"):
        scoresde.load_model(path, name="teacher")


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_pickle_is_refused_and_nothing_in_it_runs(path, tmp_path):
    target = tmp_path / "pwned"
    torch.save({"model": Evil(str(target))}, path)
    with pytest.raises(UsageError, match=r"step-17\.safetensors.*damaged or not a safetensors file"):
        checkpoint.load(path)
    assert not target.exists()
    torch.load(path.rename(tmp_path / "file.pt"), weights_only=False)["model"].close()
    assert target.exists()  # the trap works
