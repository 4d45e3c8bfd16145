"""Models put together of parts: pipeline files, prompts, and parts that moved or changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scoresde import checkpoint
from scoresde.app.cli import main
from tests.mistakes import assert_mistake
from tests.runs import newest

SAMPLE = ["--mode=sample", "--device=cpu", "--sampler=ddim", "--num_samples=4", "--num_steps=2"]
CAPTIONED = [*SAMPLE, "--workdir=runs/captioned"]


def drawn(output, *arguments):
    """The arrays of samples."""
    assert main([*arguments, f"--output={output}"]) == 0
    with np.load(output.with_suffix(".npz")) as found:
        return dict(found)


@pytest.fixture
def moved(trained_in_latents, tmp_path, monkeypatch):
    """A copy of the runs that a test may break."""
    shutil.copytree(trained_in_latents, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def pipeline(**changes):
    """A pipeline file of the captioned run, changed; None takes a part away."""
    content = json.loads(Path("runs/captioned/pipeline.json").read_text())
    for name, part in changes.items():
        if part is None:
            del content[name]
        else:
            content[name] = part if isinstance(part, str) else content[name] | part
    path = Path("runs/captioned/changed.json")
    path.write_text(json.dumps(content))
    return f"--pipeline={path}"


def test_a_run_writes_its_parts(latents):
    content = json.loads((latents / "runs/captioned/pipeline.json").read_text())
    files = {"generator": newest("captioned"), "autoencoder": newest("ae"), "text_encoder": newest("text")}
    assert content.keys() == {"format", *files}
    for name, file in files.items():
        place = latents / "runs/captioned" / content[name]["path"]
        assert place.resolve() == (latents / file).resolve()
        assert content[name]["digest"] == checkpoint.load(file).digest
    assert json.loads((latents / "runs/latent/pipeline.json").read_text()).keys() == content.keys() - {"text_encoder"}


def test_a_folder_of_runs_can_move(moved, tmp_path, monkeypatch):
    """Both the parts of a pipeline and those that a checkpoint names are found beside it."""
    there = drawn(tmp_path / "a.png", *CAPTIONED)["samples"]
    (moved).rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    piped = drawn(tmp_path / "b.png", *SAMPLE, "--pipeline=elsewhere/runs/captioned/pipeline.json")["samples"]
    named = drawn(tmp_path / "c.png", *SAMPLE, "--workdir=elsewhere/runs/captioned")["samples"]
    np.testing.assert_array_equal(piped, there)
    np.testing.assert_array_equal(named, there)


def test_parts_that_moved_alone_are_named_and_given(moved, tmp_path, capsys):
    there = drawn(tmp_path / "a.png", *CAPTIONED)["samples"]
    for name in ("ae", "text"):
        (moved / "runs" / name).rename(tmp_path / name)
    digest = checkpoint.load(next((tmp_path / "ae/checkpoints").iterdir())).digest
    assert_mistake(
        capsys,
        [*CAPTIONED, f"--text_encoder={tmp_path / 'text'}"],
        rf"its autoencoder {digest} was at '\S*runs/ae/checkpoints/\S+' and is not there; give its place by --autoenc",
    )
    assert_mistake(
        capsys, [*CAPTIONED, f"--autoencoder={tmp_path / 'ae'}"], r"its text encoder \w+ was at .*--text_encoder"
    )
    assert_mistake(
        capsys,
        [*SAMPLE, "--pipeline=runs/captioned/pipeline.json"],
        r"pipeline='runs/captioned/pipeline.json': its autoencoder \w+ was at '\S+' and is not there",
    )
    parts = [f"--autoencoder={tmp_path / 'ae'}", f"--text_encoder={tmp_path / 'text'}"]
    np.testing.assert_array_equal(drawn(tmp_path / "b.png", *CAPTIONED, *parts)["samples"], there)
    piped = [*SAMPLE, "--pipeline=runs/captioned/pipeline.json", *parts]
    np.testing.assert_array_equal(drawn(tmp_path / "c.png", *piped)["samples"], there)


def test_an_autoencoder_that_changed_is_refused_or_given(moved, tmp_path, capsys):
    own = newest("ae")
    shutil.copyfile(newest("other"), own)
    message = r"its autoencoder was \w+, and '\S+' is now \w+; give its place by --autoencoder FILE .*in full knowledge"
    assert_mistake(capsys, CAPTIONED, message)
    assert_mistake(
        capsys, [*SAMPLE, "--pipeline=runs/captioned/pipeline.json"], r"its autoencoder was \w+, and '\S+' is now \w+"
    )
    assert drawn(tmp_path / "a.png", *CAPTIONED, "--autoencoder=runs/ae")["samples"].shape == (4, 1, 8, 8)


def test_a_text_encoder_that_changed_is_refused_or_given(moved, tmp_path, capsys):
    again = ["--mode=train_text_encoder", "--config=runs/text/config.json", "--workdir=runs/again", "--seed=1"]
    assert main([*again, "--device=cpu"]) == 0
    shutil.copyfile(newest("again"), newest("text"))
    assert_mistake(capsys, CAPTIONED, r"its text encoder was \w+, and '\S+' is now \w+; give its place by --text_enc")
    found = drawn(tmp_path / "a.png", *CAPTIONED, "--text_encoder=runs/again")
    assert found["samples"].shape == (4, 1, 8, 8)


def test_a_text_encoder_of_another_width_does_not_suit(moved, capsys):
    wide = ["--mode=train_text_encoder", "--config=runs/text/config.json", "--workdir=runs/wide", "--device=cpu"]
    assert main([*wide, "--config.network.width=8"]) == 0
    assert_mistake(
        capsys, [*CAPTIONED, "--text_encoder=runs/wide"], r"text_encoder='runs/wide': does not suit the model \("
    )


DAMAGED = {
    "no file": ("--pipeline=runs/captioned/nothing.json", r"no such file; a run of a latent model"),
    "no JSON": ("--pipeline=runs/captioned/metrics.jsonl", r"not JSON|not a pipeline"),
    "another JSON": ("--pipeline=runs/captioned/config.json", r"not a pipeline; it lacks 'scoresde pipeline 1'"),
}


@pytest.mark.parametrize(("argument", "message"), DAMAGED.values(), ids=DAMAGED)
def test_files_that_are_no_pipelines_are_named(latents, capsys, argument, message):
    assert_mistake(capsys, [*SAMPLE, argument], message)


CHANGED = {
    "another format": ({"format": "scoresde pipeline 9"}, r"not a pipeline"),
    "no generator": ({"generator": None}, r"not a pipeline; it lacks 'scoresde pipeline 1' or its generator"),
    "part of text": ({"autoencoder": "runs/ae"}, r"its autoencoder is damaged"),
    "part without a digest": ({"text_encoder": {"digest": ""}}, r"its text_encoder is damaged"),
    "generator gone": ({"generator": {"path": "gone.safetensors"}}, r"its generator \w+ was at .*--checkpoint"),
    "another digest": ({"autoencoder": {"digest": "0123"}}, r"its autoencoder was 0123, and '\S+' is now \w+; put it"),
}


@pytest.mark.parametrize(("changes", "message"), CHANGED.values(), ids=CHANGED)
def test_damaged_pipelines_are_named(latents, capsys, changes, message):
    assert_mistake(capsys, [*SAMPLE, pipeline(**changes)], message)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_are_taken_in_turn(latents, tmp_path):
    found = drawn(tmp_path / "a.png", *CAPTIONED, "--prompt=a seven| a thick three")
    assert found["prompts"].tolist() == ["a seven", "a thick three"] * 2
    (tmp_path / "texts.txt").write_text("a seven\na thick three\n", encoding="utf-8")
    other = drawn(tmp_path / "b.png", *CAPTIONED, f"--prompt={tmp_path / 'texts.txt'}")
    np.testing.assert_array_equal(found["samples"], other["samples"])


def test_an_empty_prompt_is_no_caption(latents, tmp_path):
    """What guidance goes away from, so guidance of it by any weight is none."""
    plain, guided = (
        drawn(tmp_path / f"{w}.png", *CAPTIONED, "--prompt=", f"--guidance={w}")["samples"] for w in (1, 3)
    )
    np.testing.assert_allclose(plain, guided, atol=1e-4)


def test_prompts_are_cut_and_unknown_words_left_out_aloud(latents, tmp_path, capsys):
    long = " ".join(["seven"] * 30)
    found = drawn(tmp_path / "a.png", *CAPTIONED, f"--prompt={long}|an elephant")
    assert found["samples"].shape == (4, 1, 8, 8)
    said = capsys.readouterr().out
    assert "holds what the text encoder does not know: 'elephant'" in said
    assert "cut" in said


MISTAKEN = {
    "labels": (["--labels=3"], r"labels='3': this model was trained with captions; give a --prompt instead"),
    "both": (["--labels=3", "--prompt=a"], r"prompt='a', labels='3': give one of the two"),
    "no file": (["--prompt=gone.txt"], r"prompt='gone.txt': no such file; give a text, or a .txt file with one a line"),
    "classifier": (
        ["--guidance=2", "--guide_with=runs/classifier"],
        r"a classifier guides to classes, and this model takes captions",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKEN.values(), ids=MISTAKEN)
def test_what_is_no_prompt_is_named(latents, capsys, arguments, message):
    assert_mistake(capsys, [*CAPTIONED, *arguments], message)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"], ids=["empty", "no text"])
def test_files_without_prompts_are_named(latents, tmp_path, capsys, content):
    (tmp_path / "texts.txt").write_bytes(content)
    assert_mistake(
        capsys, [*CAPTIONED, f"--prompt={tmp_path / 'texts.txt'}"], r"prompt='\S+': (the file is empty|is not)"
    )


@pytest.mark.parametrize("mode", ["sample", "edit"])
def test_a_model_without_captions_takes_no_prompt(latents, capsys, mode):
    few = ["--device=cpu", "--workdir=runs/latent", "--num_samples=2", "--num_steps=2", "--sampler=ddim", "--prompt=a"]
    assert_mistake(capsys, [f"--mode={mode}", *few], r"prompt='a': this model was trained without captions")


def test_edits_and_measurements_take_prompts(latents, tmp_path):
    few = ["--device=cpu", "--workdir=runs/captioned", "--num_samples=2", "--num_steps=3", "--prompt=a seven|a three"]
    assert drawn(tmp_path / "a.png", "--mode=edit", *few)["edits"].shape == (3, 2, 1, 8, 8)
    np.save(tmp_path / "y.npy", np.random.default_rng(0).integers(0, 17, (2, 1, 4, 4)).astype(np.float32))
    solved = ["--mode=solve", *few, "--task=superres", "--draws=2", "--cases=0", f"--measured={tmp_path / 'y.npy'}"]
    with_prompt = drawn(tmp_path / "b.png", *solved)["samples"]
    without = drawn(tmp_path / "c.png", *[word for word in solved if not word.startswith("--prompt")])["samples"]
    assert with_prompt.shape == without.shape == (2, 2, 1, 8, 8)


def test_an_interpolation_is_of_one_caption(latents, tmp_path, capsys):
    few = ["--mode=interpolate", "--device=cpu", "--workdir=runs/captioned", "--num_steps=6"]
    assert drawn(tmp_path / "a.png", *few, "--num_samples=1")["samples"].shape == (1, 9, 1, 8, 8)
    assert_mistake(
        capsys, [*few, "--num_samples=200"], r"there are only \d+ pairs among 449 samples, of one caption each"
    )


def test_parts_do_not_go_with_a_model_of_data(latents, capsys):
    plain = ["--mode=train", "--device=cpu", "--config=toy", "--config.training.num_steps=1", "--workdir=runs/plain"]
    assert main([*plain, "--config.network.width=8"]) == 0
    given = [*SAMPLE, "--workdir=runs/plain"]
    assert_mistake(capsys, [*given, "--autoencoder=runs/ae"], r"works on the data themselves, without an autoencoder")
