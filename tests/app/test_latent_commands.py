"""Every command on a model of latents: what it writes is data, and what has no meaning in latents is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import checkpoint
from scoresde.app.cli import main
from scoresde.app.flags import SampleFlags
from scoresde.app.trained import Trained
from scoresde.app.user_data import own_data
from scoresde.models.latent_codec import AutoencoderCodec
from tests.mistakes import assert_mistake
from tests.runs import AUTOENCODER, SAMPLE, newest

ON = ["--device=cpu", "--workdir=runs/latent"]
FEW = ["--num_samples=2", "--num_steps=6"]
DDIM = ["--sampler=ddim", "--num_samples=4", "--num_steps=3"]
SOLVE = ["--mode=solve", *ON, "--num_samples=2", "--draws=3", "--num_steps=3", "--cases=0", "--task=inpaint"]


def arrays(output, *arguments):
    """The arrays that a command wrote beside a picture."""
    assert main([*arguments, f"--output={output}"]) == 0
    with np.load(output.with_suffix(".npz")) as found:
        return dict(found)


@pytest.fixture
def held_out(latents):
    """The held-out samples of the run, in raw values, and the codec of its model."""
    trained = Trained.of(SampleFlags(workdir="runs/latent", device="cpu"), [])
    data = own_data(trained)[1]
    assert isinstance(data.codec, AutoencoderCodec)
    return data.values.float(), data.codec


def test_samples_are_decoded(latents, tmp_path):
    found = arrays(tmp_path / "a.png", "--mode=sample", *ON, *DDIM)
    assert found["samples"].shape == (4, 1, 8, 8)
    other = arrays(tmp_path / "b.png", "--mode=sample", *ON, *DDIM, "--autoencoder=runs/other")
    assert np.abs(found["samples"] - other["samples"]).max() > 0.1  # another decoder makes other images of the same
    piped = arrays(tmp_path / "c.png", "--mode=sample", "--device=cpu", "--pipeline=runs/latent/pipeline.json", *DDIM)
    np.testing.assert_array_equal(piped["samples"], found["samples"])


@pytest.mark.parametrize(
    "how",
    [
        ("--sampler=pc", "--config.sampling.pc.snr=0.1"),
        ("--sampler=pc",),
        ("--sampler=ancestral", "--config.sampling.ancestral.variance=pilot"),
        ("--sampler=heun", "--guidance=2", "--guidance_interval=0.1,3"),
        ("--sampler=ddim", "--guidance=2", "--guide_with=runs/latent"),
        ("--sampler=ddim", "--guidance=2", "--guide_with=runs/classifier"),
        ("--sampler=edm",),
        ("--sampler=norm_pc",),
    ],
    ids=" ".join,
)
def test_every_way_to_sample_gives_data(latents, tmp_path, how):
    found = arrays(tmp_path / "a.png", *SAMPLE, "--workdir=runs/latent", *how)
    assert found["samples"].shape == (6, 1, 8, 8)
    assert np.isfinite(found["samples"]).all()


def test_inversion_and_interpolation_show_data(held_out, tmp_path):
    raw, codec = held_out
    found = arrays(tmp_path / "a.png", "--mode=invert", *ON, *FEW)
    assert found["latents"].shape == (2, 3, 4, 4)
    np.testing.assert_allclose(found["samples"], codec.decode(codec.encode(raw[:2])), atol=1e-4)
    assert found["returned"].shape == (2, 1, 8, 8)
    assert arrays(tmp_path / "b.png", "--mode=interpolate", *ON, *FEW)["samples"].shape == (2, 9, 1, 8, 8)


def test_edits_show_data(held_out, tmp_path):
    raw, codec = held_out
    found = arrays(tmp_path / "a.png", "--mode=edit", *ON, *FEW, "--noise_levels=0.5,1")
    np.testing.assert_allclose(found["samples"], codec.decode(codec.encode(raw[:2])), atol=1e-4)
    assert found["edits"].shape == (2, 2, 1, 8, 8)


def test_pictures_of_a_user_are_brought_to_the_size_of_data(latents, tmp_path):
    """Not to that of latents."""
    levels = np.repeat(np.arange(0, 8), 4)[:, None, None] * 16 + 100  # a row each as it is seen
    Image.fromarray(np.broadcast_to(levels, (32, 32, 3)).astype(np.uint8)).save(tmp_path / "one.png")
    edited = ["--mode=edit", *ON, *FEW, f"--input={tmp_path / 'one.png'}", "--labels=3"]
    assert arrays(tmp_path / "a.png", *edited)["samples"].shape == (1, 1, 8, 8)
    solved = [*SOLVE, f"--input={tmp_path / 'one.png'}", "--labels=3"]
    rows = (np.arange(8) * 16 + 100) * 16 / 255
    np.testing.assert_allclose(arrays(tmp_path / "b.png", *solved)["truth"][0, 0, :, 0], rows, atol=0.6)


# --- inverse problems -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "superres", "deblur", "motion", "cs", "mri", "phase", "jpeg"])
def test_data_are_measured_and_found(held_out, tmp_path, task, capsys):
    raw, _ = held_out
    found = arrays(tmp_path / "a.png", *SOLVE, f"--task={task}")
    assert found["samples"].shape == (2, 3, 1, 8, 8)
    np.testing.assert_allclose(found["truth"], raw[:2], atol=1e-5)  # not as the autoencoder has it
    assert "of decoded latents (3x4x4)" in capsys.readouterr().out


def test_noise_and_measurements_are_in_the_units_of_data(held_out, tmp_path):
    """Without noise the blocks of (raw - 8) / 8 are averaged; with a gain counts are of the range above its low end."""
    raw, _ = held_out
    tiny = "--config.sampling.task.noise=1e-6"
    found = arrays(tmp_path / "a.png", *SOLVE, "--task=superres", tiny)
    blocks = torch.nn.functional.avg_pool2d((raw[:2] - 8) / 8, 2)
    np.testing.assert_allclose(found["measurement"], blocks, atol=1e-5)
    counted = arrays(tmp_path / "b.png", *SOLVE, "--task=superres", "--config.sampling.task.gain=5.0")
    counts = 5 * (counted["measurement"] + 1)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    np.save(tmp_path / "y.npy", (8 + 8 * blocks).numpy())
    given = [*SOLVE, "--task=superres", f"--measured={tmp_path / 'y.npy'}", "--labels=3"]
    np.testing.assert_allclose(arrays(tmp_path / "c.png", *given)["measurement"], blocks, atol=1e-5)


@pytest.mark.parametrize("method", ["mmps", "dps", "gibbs"])
def test_methods_for_operators_that_are_not_linear_find_data(latents, tmp_path, monkeypatch, method):
    monkeypatch.setattr("samplers.measured.split_gibbs.LANGEVIN_STEPS", 3)
    found = arrays(tmp_path / "a.png", *SOLVE, "--num_samples=1", "--draws=2", f"--method={method}")
    assert found["samples"].shape == (1, 2, 1, 8, 8)
    assert np.isfinite(found["samples"]).all()


@pytest.mark.parametrize("method", ["pigdm", "diffpir", "ddrm", "replacement", "repaint", "particles"])
def test_other_methods_are_refused(latents, capsys, method):
    message = (
        rf"method='{method}': needs a linear measurement, and Mask\(1x8x8 to 19\) of decoded latents \(3x4x4\) is not; "
        "take --method mmps, --method dps, --method gibbs"
    )
    assert_mistake(capsys, [*SOLVE, f"--method={method}"], message)


def test_calibration_is_of_data(latents, tmp_path, capsys):
    assert main([*SOLVE, "--cases=2", f"--output={tmp_path / 'a.png'}"]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if "in 2 held-out cases" in line)
    assert main([*SOLVE, "--cases=2", f"--output={tmp_path / 'b.png'}"]) == 0
    assert first in capsys.readouterr().out


# --- measures, tables and pictures ----------------------------------------------------------------------------------


def test_evaluation_leaves_out_what_latents_do_not_have(latents, tmp_path):
    asked = ["--mode=evaluate", *ON, "--num_samples=20", "--metric=all", "--features=values"]
    drawn = ["--sampler=ddim", "--num_steps=5"]
    assert main([*asked, *drawn, f"--output={tmp_path / 'a.json'}"]) == 0
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    assert {"reconstruction, bits per dimension", "bound by the flow, bits per dimension"} <= results.keys()
    total = sum(results[f"{part}, bits per dimension"]["value"] for part in ("reconstruction", "rate by the flow"))
    assert results["bound by the flow, bits per dimension"]["value"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--metric=vlb", r"metric='vlb': bounds whole numbers by the last step.*take elbo"),
        ("--dequantization=variational", r"dequantization='variational': the bound of a model of latents is of whole"),
        ("--config.sampling.threshold=static", r"threshold='static': the range of data is known, not that of latents"),
    ],
)
def test_measures_of_data_alone_are_refused(latents, capsys, argument, message):
    few = ["--num_samples=4", "--num_steps=5"]
    assert_mistake(capsys, ["--mode=evaluate", *ON, *few, "--metric=nll", argument], message)


@pytest.mark.parametrize(
    ("run", "what"),
    [
        *(("latent", what) for what in ("denoising", "trajectories", "score_field", "training")),
        *(("captioned", what) for what in ("denoising",)),
    ],
)
def test_pictures(latents, tmp_path, run, what):
    output = tmp_path / "a.png"
    assert (
        main(["--mode=visualize", "--device=cpu", f"--workdir=runs/{run}", f"--what={what}", f"--output={output}"]) == 0
    )
    assert output.stat().st_size > 1000


def test_a_picture_of_guidance_is_of_classes(latents, tmp_path, capsys):
    asked = ["--mode=visualize", "--device=cpu", "--what=guidance", "--num_samples=4", "--num_steps=5"]
    assert main([*asked, "--workdir=runs/latent", f"--output={tmp_path / 'a.png'}"]) == 0
    assert_mistake(capsys, [*asked, "--workdir=runs/captioned"], r"what='guidance': is of classes")


def test_a_graph_of_a_denoiser_takes_latents_and_tokens(latents, tmp_path, capsys):
    assert main(["--mode=export", "--device=cpu", "--workdir=runs/captioned", f"--output={tmp_path / 'a.pt2'}"]) == 0
    assert "of inputs x_t, t, tokens, mask;" in capsys.readouterr().out


def test_diffusers_has_no_pipeline_of_latents(latents, capsys):
    assert_mistake(
        capsys, ["--mode=export", *ON, "--to=diffusers"], r"to='diffusers': this model makes latents, .*take onnx"
    )


# --- guidance and swapped parts -------------------------------------------------------------------------------------


def test_guides_of_other_latents_are_refused(latents, capsys):
    """Their shapes are the same, and their numbers mean something else."""
    other = ["--mode=train_classifier", "--device=cpu", "--config=vp", "--config.training.num_steps=1"]
    small = ["--config.network.channels=8", "--config.training.batch_size=32"]
    assert main([*other, *small, "--workdir=runs/of_data"]) == 0
    assert main([*other, *small, "--config.data.autoencoder=runs/other", "--workdir=runs/of_other"]) == 0
    guided = ["--mode=sample", *ON, *DDIM, "--guidance=2"]
    message = r"was trained on data, and the model on the latents of \w+; train one like the model, with --config\.data"
    assert_mistake(capsys, [*guided, "--guide_with=runs/of_data"], message)
    assert_mistake(capsys, [*guided, "--guide_with=runs/of_other"], r"trained on the latents of \w+, and the model on")


def test_a_classifier_has_the_model_s_latents(latents):
    found = checkpoint.load_classifier(newest("classifier"))
    assert found.shape == (3, 4, 4)
    assert found.codec == checkpoint.load_model(newest("latent")).codec


def test_what_is_kept_of_one_decoder_is_not_used_for_another(latents):
    keys = [
        Trained.of(SampleFlags(workdir="runs/latent", device="cpu", autoencoder=given), []).sampling_key()
        for given in (None, "runs/ae", "runs/other")
    ]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "runs/latent",
            r"autoencoder='runs/latent': holds a score model and no autoencoder; give a run of --mode train_autoen",
        ),
        ("runs/nothing", r"autoencoder='runs/nothing': no such file or folder"),
    ],
)
def test_parts_that_are_no_autoencoders_are_refused(latents, capsys, given, message):
    assert_mistake(capsys, ["--mode=sample", *ON, *DDIM, f"--autoencoder={given}"], message)


def test_an_autoencoder_of_other_channels_is_refused(latents, capsys):
    changes = {"wide": "--config.network.latent_channels=2", "flat": "--config.network.multipliers=(1,)"}
    for name, changed in changes.items():
        field = changed.split("=")[0]
        same = [word for word in AUTOENCODER if not word.startswith(field)]
        assert main([*same, changed, f"--workdir=runs/{name}"]) == 0
    given = ["--mode=sample", *ON, *DDIM]
    message = r"gives 2 channels of a size 2 times smaller, and the model learned 3 channels of a size 2 times smaller"
    assert_mistake(capsys, [*given, "--autoencoder=runs/wide"], message)
    assert_mistake(capsys, [*given, "--autoencoder=runs/flat"], r"gives 3 channels of a size 1 times smaller")
