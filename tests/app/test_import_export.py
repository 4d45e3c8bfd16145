"""Published weights as runs, and runs for other programs, through the command line."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scoresde import checkpoint
from scoresde.app.cli import main
from scoresde.networks import TinyAutoencoder
from tests.interop.published import adm, dit, song, song_checkpoint
from tests.mistakes import assert_mistake
from tests.runs import TINY


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_published_weights_become_a_run_that_samples(here, capsys):
    torch.save(song_checkpoint(song(32, (1, 2), 1, (1,), True, "residual")), "checkpoint_8.pth")
    size = "--config.data.image_size=(8,)"
    assert main(["--mode=import", "--from=checkpoint_8.pth", size]) == 0
    said = capsys.readouterr().out
    assert "a UNet of" in said
    assert "under VESDE, NoiseParametrization, samples of 3x8x8" in said
    few = ["--sampler=heun", "--num_steps=5", "--num_samples=2"]
    assert main(["--mode=sample", *few, "--workdir=runs/checkpoint_8"]) == 0
    model = checkpoint.load("runs/checkpoint_8/checkpoints/step-000000000.safetensors").model()
    assert model.sde.sigma_max == pytest.approx(100, rel=1e-5)
    assert_mistake(
        capsys, ["--mode=import", "--from=checkpoint_8.pth", size], r"workdir='runs/checkpoint_8': holds a run"
    )
    assert_mistake(capsys, ["--mode=evaluate", "--workdir=runs/checkpoint_8"], r"data\.path='': this run was imported")
    other = ["--config.network.dropout=0.3", "--workdir=runs/b"]
    assert main(["--mode=import", "--from=checkpoint_8.pth", size, *other]) == 0
    model = checkpoint.load("runs/b/checkpoints/step-000000000.safetensors").model()
    assert model.network.dropout == 0.3


def test_a_classifier_free_and_a_latent_model_say_what_they_are(here, capsys):
    torch.save(adm(64, (1, 1), 1, (1,), 3), "adm.pt")
    assert main(["--mode=import", "--from=adm.pt", "--qkv=new", "--schedule=cosine"]) == 0
    assert "under DiscreteVPSDE, NoiseParametrization, samples of 3x16x16, 3 classes" in capsys.readouterr().out
    assert (
        main(
            [
                "--mode=sample",
                "--sampler=ancestral",
                "--num_steps=2",
                "--num_samples=2",
                "--labels=1",
                "--workdir=runs/adm",
            ]
        )
        == 0
    )
    torch.save(dit(128, 1), "dit.pt")
    assert main(["--mode=import", "--from=dit.pt", "--sde=flow"]) == 0
    assert "its samples are latents" in capsys.readouterr().out
    assert main(["--mode=sample", "--sampler=ddim", "--num_steps=2", "--num_samples=2", "--workdir=runs/dit"]) == 0


@pytest.fixture
def published(here):
    """The two files of an autoencoder, in a folder."""
    torch.manual_seed(0)
    network = TinyAutoencoder(3, 8, 4, (1, 2), (2, 1))
    (here / "tae").mkdir()
    for half in ("encoder", "decoder"):
        save_file(getattr(network, half).state_dict(), here / "tae" / f"tae_{half}.safetensors")
    return network


def test_a_published_autoencoder_becomes_a_run_whose_latents_are_learned(published, here, capsys):
    assert main(["--mode=import", "--from=tae", "--config.data.image_size=(8,)"]) == 0
    said = capsys.readouterr().out
    assert "a TinyAutoencoder of" in said
    assert "from 3 channels to 4 of sizes 2 times smaller" in said
    assert "--config.data.autoencoder=runs/tae" in said
    codec = checkpoint.load_autoencoder("runs/tae/checkpoints/step-000000000.safetensors")
    assert codec.autoencoder.shape == (3, 8, 8)
    raw = torch.arange(192).reshape(1, 3, 8, 8).to(torch.uint8)
    torch.testing.assert_close(codec.encode(raw), published.encode(raw / 255).mean.detach())
    images = np.random.default_rng(0).integers(0, 255, (20, 3, 8, 8), dtype=np.uint8)
    np.savez("images.npz", x=images)
    data = "--config.data.path=images.npz"
    latent = [data, "--config.data.autoencoder=runs/tae", "--config.network.channels=4", "--workdir=runs/latent"]
    assert main([*TINY, *latent]) == 0
    few = ["--sampler=heun", "--num_steps=5", "--num_samples=2", "--workdir=runs/latent", "--device=cpu"]
    assert main(["--mode=sample", *few]) == 0
    picture = ["--mode=visualize", "--what=latents", "--workdir=runs/tae", "--num_samples=2", "--device=cpu"]
    assert main([*picture, data]) == 0
    assert_mistake(capsys, picture, r"data\.path='': this run was imported, and its data are not known here")
    assert_mistake(capsys, ["--mode=sample", "--workdir=runs/tae"], r"holds an autoencoder and no score model")


def test_the_published_scale_of_latents_is_kept(here):
    diffusers = pytest.importorskip("diffusers")
    levels = {"block_out_channels": (32,), "down_block_types": ("DownEncoderBlock2D",)}
    scale = {"scaling_factor": 0.5, "shift_factor": 0.25, "latent_channels": 3}
    network = diffusers.AutoencoderKL(**levels, up_block_types=("UpDecoderBlock2D",), **scale)
    network.save_pretrained(here / "pipeline" / "vae")
    assert main(["--mode=import", "--from=pipeline", "--workdir=runs/kl"]) == 0
    assert main(["--mode=import", "--from=pipeline/vae", "--as=autoencoder", "--workdir=runs/vae"]) == 0
    for run in ("kl", "vae"):
        codec = checkpoint.load_autoencoder(f"runs/{run}/checkpoints/step-000000000.safetensors")
        assert codec.autoencoder.latent_mean.tolist() == [0.25] * 3
        assert codec.autoencoder.latent_std.tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sde=vp", r"sde='vp': says nothing about an autoencoder"),
        ("--config.network.channels=4", r"config\.network\.channels=4: says nothing about an autoencoder"),
        ("--as=diffusers", r"from='tae': lacks config\.json|no .*config\.json"),
    ],
)
def test_mistakes_of_an_autoencoders_import_are_one_line(published, capsys, argument, message):
    assert_mistake(capsys, ["--mode=import", "--from=tae", argument], message)


IMPORTS = {
    "nothing": ([], "from: name the published weights"),
    "no file": (["--from=x.pth"], "from='x.pth': no such file"),
    "format": (["--from=x.pth", "--as=edm"], "as='edm': need score_sde"),
    "field": (["--from=x.pth", "--config.training.lr=1"], r"config\.training: is not known before there is a run"),
    "data": (["--from=x.pth", "--config.data.held_out=0.5"], r"config\.data\.held_out: is not known before"),
    "code": (["--from=evil.pth"], r"not made of tensors alone.*\(it names print\)"),
    "size": (["--from=x.pth", "--config.data.image_size=(9,7,3)"], r"data\.image_size=\(9, 7, 3\): need one positive"),
}


@pytest.mark.parametrize(("arguments", "message"), IMPORTS.values(), ids=IMPORTS.keys())
def test_mistakes_of_an_import_are_one_line(here, capsys, arguments, message):
    torch.save({"model": print}, "evil.pth")
    assert_mistake(capsys, ["--mode=import", *arguments], message)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    small = ["--config.training.num_steps=2", "--config.network.channels=4", "--config.training.batch_size=8"]
    assert main(["--mode=train", "--config=vp", f"--workdir={folder}", *small]) == 0
    return folder


@pytest.mark.parametrize("what", [[], ["--sampler=unipc", "--num_steps=5"]], ids=["denoiser", "sampler"])
@pytest.mark.parametrize("target", ["torch_export", "onnx"])
@pytest.mark.filterwarnings("ignore")
def test_a_graph_takes_batches_of_any_size_and_agrees_with_the_model(run, tmp_path, capsys, target, what):
    """The command compares it with the model on another batch than the one that it was made with."""
    file = tmp_path / ("graph.pt2" if target == "torch_export" else "graph.onnx")
    assert main(["--mode=export", f"--to={target}", f"--workdir={run}", f"--output={file}", *what]) == 0
    difference = float(capsys.readouterr().out.split()[-1])
    assert difference <= 1e-4
    assert file.is_file()
    if target == "torch_export":
        graph = torch.export.load(file).module()
        labels = torch.arange(7) % 10
        inputs = (torch.randn(7, 1, 8, 8), labels) if what else (torch.randn(7, 1, 8, 8), torch.full((7,), 0.5), labels)
        assert graph(*inputs).shape == (7, 1, 8, 8)


@pytest.fixture(scope="module")
def guidable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guidable")
    small = ["--config.training.num_steps=2", "--config.network.channels=4", "--config.training.batch_size=8"]
    assert main(["--mode=train", f"--workdir={folder}", "--config.network.label_dropout=0.1", *small]) == 0
    return folder


@pytest.mark.parametrize("what", [[], ["--sampler=ddim", "--num_steps=2"]], ids=["denoiser", "sampler"])
@pytest.mark.filterwarnings("ignore")
def test_a_guided_model_is_a_graph_too(guidable, capsys, what):
    assert main(["--mode=export", "--to=torch_export", f"--workdir={guidable}", "--guidance=2", *what]) == 0
    assert float(capsys.readouterr().out.split()[-1]) <= 1e-4
    name = "ddim-4-w2.pt2" if what else "denoiser-w2.pt2"  # guidance evaluates the network twice a step
    assert (guidable / "exported" / name).is_file()


@pytest.mark.filterwarnings("ignore")
def test_an_operation_that_onnx_lacks_is_named_and_leaves_no_file(run, tmp_path, capsys):
    thresholded = ["--config.sampling.threshold=dynamic", "--sampler=ddim", "--num_steps=1"]
    arguments = ["--mode=export", "--to=onnx", f"--workdir={run}", f"--output={tmp_path}/x.onnx", *thresholded]
    assert_mistake(capsys, arguments, r"cannot be written as a graph \(ONNX has no aten\.kthvalue\)")
    assert list(tmp_path.iterdir()) == []


EXPORTS = {
    "target": (["--to=tflite"], "to='tflite': need diffusers, onnx, torch_export"),
    "network": (["--to=diffusers"], r"network\.noise_embedding='octaves'"),
    "sampler": (["--to=diffusers", "--sampler=heun"], "diffusers has samplers of its own"),
    "noise": (["--to=onnx", "--sampler=ancestral", "--num_steps=2"], "draws noise on its way"),
    "suffix": (["--to=onnx", "--output=x.bin"], r"output='x\.bin': a file of onnx ends in \.onnx"),
}


@pytest.mark.parametrize(("arguments", "message"), EXPORTS.values(), ids=EXPORTS.keys())
def test_mistakes_of_an_export_are_one_line(run, here, capsys, arguments, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_mistake(capsys, ["--mode=export", f"--workdir={run}", *arguments], message)
