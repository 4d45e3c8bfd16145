"""Runs that the tests of the commands share: trained once, and copied for each module, which may write there."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from scoresde.app import fitted_tables
from scoresde.app.cli import main
from tests.runs import AUTOENCODER, CAPTIONED, DIGITS, LATENT, LATENT_CLASSIFIER, TEXT_ENCODER, TOY, train_logged


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory):
    """A folder with runs on digits (vp), on moons (toy), and on points without classes (points)."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        np.savez("points.npz", x=np.random.default_rng(0).normal(size=(400, 2)))
        assert main(DIGITS) == 0
        assert main([*TOY, "--config.data.path=points.npz", "--workdir=runs/points"]) == 0
        assert main(TOY) == 0
    return folder


@pytest.fixture(scope="module")
def runs(trained_runs, tmp_path_factory):
    """The module's own copy of the trained runs."""
    folder = tmp_path_factory.mktemp("work") / "copy"
    shutil.copytree(trained_runs, folder)
    return folder


@pytest.fixture
def work(runs, monkeypatch):
    """The module's copy of the trained runs as the working directory."""
    monkeypatch.chdir(runs)
    return runs


@pytest.fixture(scope="session")
def trained_in_latents(tmp_path_factory):
    """A folder with runs on digits: two autoencoders (ae, other), a model of the latents of the first (latent), its
    classifier (classifier), an encoder of captions (text), and a model of latents with captions (captioned)."""
    folder = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, command in {
            "ae": AUTOENCODER,
            "other": [*AUTOENCODER, "--seed=1"],
            "latent": LATENT,
            "classifier": LATENT_CLASSIFIER,
            "text": TEXT_ENCODER,
            "captioned": CAPTIONED,
        }.items():
            assert main([*command, f"--workdir=runs/{name}"]) == 0
    return folder


@pytest.fixture(scope="module")
def latent_runs(trained_in_latents, tmp_path_factory):
    """The module's own copy of the runs in latents."""
    folder = tmp_path_factory.mktemp("work") / "copy"
    shutil.copytree(trained_in_latents, folder)
    return folder


@pytest.fixture
def latents(latent_runs, monkeypatch):
    """The module's copy of the runs in latents as the working directory."""
    monkeypatch.chdir(latent_runs)
    return latent_runs


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A logged run that nothing interrupted; only read."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train_logged(folder) == 0
    return folder


@pytest.fixture(scope="session")
def tables_of_toy():
    """Tables fitted to the run on moons, once they are."""
    return []


@pytest.fixture
def fits(tables_of_toy, monkeypatch):
    """The models that tables were fitted to; the fit itself, which takes seconds, is made once for all tests."""
    found = []
    fit = fitted_tables.fit_sampler

    def noted(model, cond, on_evaluation, batch_size):
        found.append(model)
        if not tables_of_toy:
            tables_of_toy.append(fit(model, cond))
        on_evaluation()
        return tables_of_toy[0]

    monkeypatch.setattr(fitted_tables, "fit_sampler", noted)
    return found
