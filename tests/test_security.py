"""Nothing that is read is run: malicious files of every kind are offered, and a trap says whether any of them acted."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scoresde import checkpoint, load_model
from scoresde.app.cli import main
from scoresde.app.config import load_config
from scoresde.errors import UsageError
from tests.checkpoints import rewrite

ROOT = Path(__file__).parent.parent
PACKAGES = ["main.py", "scoresde", "samplers", "sde_configs"]


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.fixture
def trap(tmp_path):
    """The file that is there if something ran."""
    target = tmp_path / "trap"
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists()  # it works
    target.unlink()
    return target


def one_line(capsys, *arguments):
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    return err


def npz_of_objects(trap):
    file = io.BytesIO()
    np.savez(file, x=np.array([Evil(trap)], dtype=object))
    return file.getvalue()


def npz_with_a_pickle_for_an_array(trap):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Evil(trap)))
    return file.getvalue()


def npy_of_objects(trap):
    file = io.BytesIO()
    np.save(file, np.array([Evil(trap)], dtype=object))
    return file.getvalue()


def torch_file(trap):
    file = io.BytesIO()
    torch.save({"x": Evil(trap)}, file)
    return file.getvalue()


DATA = {
    "a.npz": npz_of_objects,
    "b.npz": npz_with_a_pickle_for_an_array,
    "a.npy": npy_of_objects,
    "b.npy": lambda trap: pickle.dumps(Evil(trap)),
    "a.npz.pt": torch_file,
    "a.pkl": lambda trap: pickle.dumps(Evil(trap)),
    "a.parquet": lambda trap: pickle.dumps(Evil(trap)),
    "a.idx": lambda trap: pickle.dumps(Evil(trap)),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_hides_a_pickle(tmp_path, trap, capsys, name):
    (tmp_path / name).write_bytes(DATA[name](trap))
    arguments = (
        "--mode=train",
        "--config=toy",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.path={tmp_path / name}",
    )
    assert name in one_line(capsys, *arguments)
    assert not trap.exists()


def test_a_script_beside_the_data_is_not_run(tmp_path, trap, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "pictures.py").write_text(f"open({str(trap)!r}, 'w')")
    (folder / "dataset_infos.json").write_text("{}")
    one_line(capsys, "--mode=train", f"--workdir={tmp_path / 'run'}", f"--config.data.path={folder}")
    assert not trap.exists()


def described(path, **parts):
    """Writes a file whose header describes a model with some parts changed."""
    model = {"network": {"name": "MLP", "dim": 2}, "sde": {"name": "VPSDE"}, "shape": [2], "codec": {"name": "Scaling"}}
    model |= {"parametrization": {"name": "NoiseParametrization"}}
    header = {"format": checkpoint.FORMAT, "step": 1, "models": {"score": model | parts}}
    rewrite(path, header, {"x": torch.zeros(1)})


EVIL_NAMES = ["os.system", "__import__('os').system", "builtins.open", "torch.load", "Evil", "NetworkScoreModel", "str"]
PARTS = ["network", "sde", "parametrization", "codec"]


@pytest.mark.parametrize("part", PARTS)
def test_a_header_cannot_name_anything_but_the_registered_classes(tmp_path, trap, part):
    path = tmp_path / "step-1.safetensors"
    for name in EVIL_NAMES:
        described(path, **{part: {"name": name, "command": f"touch {trap}"}})
        with pytest.raises(UsageError, match=rf"models\.score\.{part}\.name {re.escape(repr(name))}"):
            load_model(path)
        assert not trap.exists(), name


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_an_argument_cannot_name_anything_but_the_registered_classes(tmp_path, trap, name):
    path = tmp_path / "step-1.safetensors"
    evil = {"name": name, "command": f"touch {trap}"}
    for part, description in (
        ("parametrization", {"name": "NoiseParametrization", "input": evil}),
        ("network", {"name": "MLP", "dim": evil}),
        ("sde", {"name": "VPSDE", "beta_max": evil}),
        ("codec", {"name": "Scaling", "scale": [evil, 1.0]}),
    ):
        described(path, **{part: description})
        with pytest.raises(UsageError, match=rf"models\.score\.{part}\."):
            load_model(path)
        assert not trap.exists(), part


@pytest.mark.parametrize("argument", ["__class__", "__init__", "self", "forward"])
def test_a_header_cannot_reach_into_a_class(tmp_path, argument):
    path = tmp_path / "step-1.safetensors"
    described(path, network={"name": "MLP", "dim": 2, argument: "x"})
    with pytest.raises(UsageError, match=argument):
        load_model(path)


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<Q", 2**63 - 1) + b"{}",  # a header of more bytes than there are
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"\0" * 8,
        struct.pack("<Q", 64) + b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'[:64],
    ],
    ids=["huge", "large", "empty", "tensor beyond the file"],
)
def test_a_safetensors_header_that_lies(tmp_path, capsys, head):
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(head)
    one_line(capsys, "--mode=sample", f"--checkpoint={path}")


def test_a_deeply_nested_header_is_answered(tmp_path, capsys):
    path = tmp_path / "step-1.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"scoresde": "[" * 100_000})
    one_line(capsys, "--mode=sample", f"--checkpoint={path}")


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_a_configuration_cannot_name_anything_but_the_registered_classes(tmp_path, trap, capsys, name):
    config = json.loads(load_config("vp", None).to_json())
    config["network"] = {"name": name, "command": f"touch {trap}"}
    (tmp_path / "c.json").write_text(json.dumps(config))
    err = one_line(capsys, "--mode=train", f"--config={tmp_path / 'c.json'}", f"--workdir={tmp_path / 'run'}")
    assert "config.network.name" in err
    assert not trap.exists()


def test_a_configuration_of_python_tags_is_no_configuration(tmp_path, trap, capsys):
    path = tmp_path / "c.json"
    path.write_text(f'!!python/object/apply:pathlib.Path.touch ["{trap}"]')
    one_line(capsys, "--mode=train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    path.write_text('{"py/object": "__main__.Evil"}')
    one_line(capsys, "--mode=train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert not trap.exists()


@pytest.mark.parametrize("field", ["training.lr", "network.multipliers", "data.name", "training.flip"])
def test_a_value_on_the_command_line_is_not_evaluated(tmp_path, trap, capsys, field):
    for value in (f"__import__('os').system('touch {trap}')", f"(lambda: open('{trap}', 'w'))()"):
        one_line(capsys, "--mode=train", f"--config.{field}={value}", f"--workdir={tmp_path / 'run'}")
        assert not trap.exists(), value


FORBIDDEN = {"eval", "exec", "compile", "__import__", "yaml.load", "os.system"}
READERS = {"pickle", "dill", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_source_reads_no_pickle_and_evaluates_nothing(package):
    files = [ROOT / package] if package.endswith(".py") else sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            assert not imported(node) & READERS, file
            if isinstance(node, ast.Call):
                assert_harmless(node, file)


def imported(node):
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def assert_harmless(call, file):
    """A call that evaluates nothing, starts no shell and unpacks no objects."""
    called = ast.unparse(call.func)
    assert called not in FORBIDDEN, f"{file}: {called}"
    if called == "torch.load":  # published weights; it then reads tensors and nothing else
        assert "weights_only=True" in ast.unparse(call), file
    for keyword in call.keywords:
        if keyword.arg in ("allow_pickle", "trust_remote_code", "shell"):
            assert isinstance(keyword.value, ast.Constant), file
            assert keyword.value.value is False, file
    if called in ("np.load", "numpy.load"):
        assert "allow_pickle" in {keyword.arg for keyword in call.keywords}, file
