"""From configurations to objects: every recipe becomes a model that trains, saves and samples."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from samplers import DDIM, Ancestral, Heun, NormPredictorCorrector
from scoresde import (
    DiscreteTimes,
    HybridObjective,
    NetworkScoreModel,
    NoiseParametrization,
    Objective,
    Scaling,
    TimeInput,
    UsageError,
    VariationalObjective,
    checkpoint,
    register,
    registry,
)
from scoresde.app.config import as_autoencoder, load_config, override, recipes
from scoresde.data import ArrayData
from scoresde.models import ThresholdedModel
from scoresde.training import Trainer
from sde_configs import build, default


def tiny(config):
    """The same configuration with a network that is quick."""
    if config.network.name == "UNet":
        config.network.channels = 8
        config.network.group_channels = 4
    elif config.network.name in ("MLP", "DiT"):
        config.network.width = 24
    if config.network.name == "DiT":
        config.network.depth = 1
    if config.data.name not in ("digits", "moons"):  # of a published training, on digits
        config.data.name = "digits"
        config.data.image_size = (0,)
        config.data.from_disk = False
        if config.network.name == "UNet":
            config.network.update({"multipliers": (1, 2), "num_blocks": 1, "attention_levels": (1,)})
        config.training.precision = "float32"
    config.training.batch_size = 16
    return config


def trainer_of(config, device="cpu"):
    """A trainer as the command line makes it, and the held-out data."""
    data, held_out = build.build_data(config)
    model = build.build_model(config, data).to(device)
    return Trainer(model, data, build.build_objective(config), build.build_options(config), config.seed), held_out


PARTS = ("cifar10_autoencoder", "digits_text")  # of an autoencoder, and of a model that needs two


@pytest.mark.parametrize("recipe", [name for name in recipes() if name not in PARTS])
def test_each_recipe_builds_and_takes_a_step(device, recipe):
    config = tiny(importlib.import_module(f"sde_configs.{recipe}").get_config())
    trainer, held_out = trainer_of(config, device)
    before = trainer.model.network.last.bias.detach().clone()
    trainer.step()
    assert math.isfinite(trainer.pop_metrics()["loss"])
    assert not torch.equal(trainer.model.network.last.bias, before)
    assert math.isfinite(trainer.held_out_loss(held_out.select(torch.arange(min(32, len(held_out))))))


def test_the_recipe_of_an_autoencoder_builds_and_takes_a_step():
    config = as_autoencoder(tiny(load_config(None, "cifar10_autoencoder", of_part=True)))
    config.network.update({"channels": 4, "num_blocks": 1})
    data, held_out = build.build_data(config)
    objective, options = build.build_objective(config), build.build_options(config)
    trainer = Trainer(build.build_autoencoder(config, data), data, objective, options, config.seed)
    trainer.step()
    assert math.isfinite(trainer.held_out_loss(held_out.select(torch.arange(16))))


def test_the_recipe_of_captions_builds_with_encoded_ones():
    config = tiny(load_config(None, "digits_text"))
    data, _ = build.build_data(config)
    texts = ("a zero", "a one")
    table = {"tokens": torch.randn(2, 3, 8), "mask": torch.ones(2, 3, dtype=torch.bool)}
    captioned = replace(data, cond={"text": torch.arange(len(data)) % 2}, texts=texts, table=table)
    model = build.build_model(config, captioned)
    assert (model.network.context_channels, model.network.context_depth) == (8, 2)
    trainer = Trainer(model, captioned, build.build_objective(config), build.build_options(config), config.seed)
    trainer.step()
    assert math.isfinite(trainer.pop_metrics()["loss"])


@pytest.mark.parametrize("recipe", [name for name in recipes() if name not in PARTS])
def test_recipes_describe_models_that_checkpoints_can_hold(tmp_path, recipe):
    config = tiny(load_config(None, recipe))
    model = build.build_model(config, build.build_data(config)[0])
    checkpoint.save_model(model, tmp_path / "m.safetensors")
    loaded = checkpoint.load_model(tmp_path / "m.safetensors")
    assert checkpoint.describe_model(loaded) == checkpoint.describe_model(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("name", build.SAMPLERS)
def test_each_sampler_builds_with_the_fields_of_the_configuration(name):
    config = default.get_config()
    sampler = build.build_sampler(config, name, None)
    assert type(sampler) is build.SAMPLERS[name]
    for field, value in config.sampling[name].items():
        if (field, value) != ("snr", 0):  # stands for a pilot run
            assert getattr(sampler, field) == value


def test_a_chain_gives_its_levels_to_the_hybrid_objective():
    config = load_config(None, "ddpm")
    config.sde.num_levels = 400
    override(config, ["--config.objective.name=HybridObjective"])
    assert build.build_objective(config) == HybridObjective(DiscreteTimes(400), num_steps=400)
    config = load_config(None, "vp")
    override(config, ["--config.objective.name=HybridObjective"])
    assert build.build_objective(config) == HybridObjective()


def test_a_variance_of_a_pilot_run_is_left_to_the_command():
    config = default.get_config()
    override(config, ["--config.sampling.ancestral.variance=pilot"])
    assert build.build_sampler(config, "ancestral", None) == Ancestral()


def test_norm_pc_is_predictor_corrector_by_the_norms_of_a_batch():
    config = default.get_config()
    override(config, ["--config.sampling.norm_pc.snr=0.1", "--config.sampling.norm_pc.corrector_steps=2"])
    assert build.build_sampler(config, "norm_pc", None) == NormPredictorCorrector(snr=0.1, corrector_steps=2)


def test_ode_with_a_number_of_steps_is_heun():
    assert build.build_sampler(default.get_config(), "ode", 7) == Heun()


def test_a_field_that_a_sampler_does_not_have_is_named():
    config = default.get_config()
    config.sampling.ddim.rho = 7.0
    with pytest.raises(UsageError, match=r"config\.sampling\.ddim.*rho"):
        build.build_sampler(config, "ddim", None)


def test_a_sampler_without_fields_has_its_defaults():
    config = default.get_config()
    del config.sampling["ddim"]
    assert build.build_sampler(config, "ddim", None) == DDIM()


def test_weights_depend_on_the_seed_and_the_global_random_state_is_left_alone():
    config = tiny(load_config(None, "toy"))
    data, _ = build.build_data(config)
    state = torch.get_rng_state()
    first, again = (build.build_model(config, data).network.first.weight for _ in range(2))
    config.seed = 1
    other = build.build_model(config, data).network.first.weight
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sigma_data_is_measured_unless_it_is_given():
    config = tiny(load_config("edm", "toy"))
    data, _ = build.build_data(config)
    model = build.build_model(config, data)
    assert model.parametrization.sigma_data == pytest.approx(data.rms(), rel=1e-6)
    assert model.sigma_data == model.parametrization.sigma_data
    config.parametrization.sigma_data = 0.25
    assert build.build_model(config, data).sigma_data == 0.25


def test_what_a_network_sees_can_be_described_in_a_recipe(tmp_path):
    plain = json.loads(load_config(None, "toy").to_json_best_effort())
    plain["parametrization"] |= {"name": "NoiseParametrization", "input": {"name": "TimeInput", "scale": 10.0}}
    (tmp_path / "own.json").write_text(json.dumps(plain))
    config = load_config(None, str(tmp_path / "own.json"))
    model = build.build_model(config, build.build_data(config)[0])
    assert model.parametrization == NoiseParametrization(model.sigma_data, TimeInput(10.0))


def test_the_scaling_can_be_given():
    config = load_config(None, "toy")
    override(config, ["--config.data.center=(0.5,)", "--config.data.scale=(2.0, 4.0)"])
    train, held_out = build.build_data(config)
    assert train.codec == held_out.codec == Scaling(0.5, (2.0, 4.0))
    for arguments, message in {
        ("--config.data.center=(0.5,)",): r"data\.center=\(0\.5,\), data\.scale=\(\): give both or none",
        ("--config.data.center=(0.5,)", "--config.data.scale=(1., 2., 3.)"): r"scale of Scaling: has 3 numbers",
    }.items():
        config = load_config(None, "toy")
        override(config, arguments)
        with pytest.raises(UsageError, match=message):
            build.build_data(config)


def test_series_and_volumes_have_networks():
    kinds = itertools.product(((16,), (4, 5, 6)), ("UNet", "MPUNet", "UNetClassifier"))
    for sizes, name in (*kinds, ((16,), "DiT"), ((4, 2, 6), "DiT")):
        generator = torch.Generator().manual_seed(0)
        data = ArrayData(torch.randn(8, 2, *sizes, generator=generator), torch.arange(8) % 2)
        config = load_config("vp", None)
        override(config, [f"--config.network.name={name}"])
        if name == "UNetClassifier":
            assert build.build_classifier(config, data).network.dims == len(sizes)
            continue
        model = build.build_model(config, data)
        assert model.network.dims == len(sizes)
        x = torch.zeros(1, 2, *sizes)
        assert model.network(x, torch.zeros(1), torch.zeros(1).long()).shape == x.shape


def test_another_network_is_named_with_its_fields(tmp_path):
    config = load_config("vp", None)
    override(config, ["--config.network.name=DiT", "--config.network.width=48", "--config.network.num_heads=3"])
    network = build.build_model(config, build.build_data(config)[0]).network
    assert (type(network).__name__, network.width, network.num_heads) == ("DiT", 48, 3)
    config = load_config("vp", None)
    override(config, ["--config.network.dropout=0.1", "--config.network.attention_levels=(0,)"])
    network = build.build_model(config, build.build_data(config)[0]).network
    assert (network.dropout, network.attention_levels) == (0.1, (0,))
    with pytest.raises(UsageError, match=r"unknown field --config\.network\.wdith"):
        override(load_config("vp", None), ["--config.network.name=DiT", "--config.network.wdith=48"])


UNKNOWN = {
    "near": (["--config.network.attention_level=(1,)"], r"did you mean --config\.network\.attention_levels\?$"),
    "another's": (["--config.network.name=DiT", "--config.network.multipliers=(1,)"], "a DiT has patch_size, width, "),
    "classes": (["--config.network.num_classes=5"], "num_classes: it follows from the data; leave it out"),
    "axes": (["--config.network.name=DiT", "--config.network.dims=3"], "dims: it follows from the data; leave it out"),
}


@pytest.mark.parametrize(("arguments", "message"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_fields_that_a_network_does_not_have_are_refused_with_those_that_it_has(arguments, message):
    with pytest.raises(UsageError, match=message):
        override(load_config("vp", None), arguments)


def test_patches_that_do_not_divide_the_images_are_refused_before_training():
    config = load_config("vp", None)
    override(config, ["--config.network.name=DiT", "--config.network.patch_size=3"])
    with pytest.raises(UsageError, match=r"patch_size=3 does not divide 8; .* 6 or 9"):
        build.build_model(config, build.build_data(config)[0])


def test_volumes_are_not_sent_from_one_network_to_the_other(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 2, 3, 4, 5, 2)))
    for recipe in ("toy", None):
        config = load_config("vp", recipe)
        config.data.path = str(tmp_path / "x.npy")
        data, _ = build.build_data(config)
        with pytest.raises(UsageError, match=r"shape \(2, 3, 4, 5, 2\); no built-in network takes it"):
            build.build_model(config, data)


def test_the_objective_is_chosen_by_name():
    config = tiny(load_config("vdm", "toy"))
    assert build.build_objective(config) == VariationalObjective()
    fixed = load_config(None, "toy")
    override(fixed, ["--config.objective.name=VariationalObjective"])
    assert build.build_objective(fixed) == VariationalObjective()
    with pytest.raises(UsageError, match=r"unknown field --config\.objective\.weighting\.name"):
        override(config, ["--config.objective.weighting.name=NoiseWeighting"])
    fixed.objective.name = "VariationalObjectiv"
    with pytest.raises(UsageError, match=r"config\.objective\.name 'VariationalObjectiv': did you mean"):
        build.build_objective(fixed)


@dataclass(frozen=True)
class PlainObjective(Objective):
    """An objective of a user's own, without times and weighting."""

    power: float = 2.0

    def draw(self, model, batch, noise):
        raise NotImplementedError

    def at(self, model, batch, draws, averaged=None):
        raise NotImplementedError


def test_an_objective_of_ones_own_needs_no_times_and_weighting(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    register(PlainObjective)
    config = load_config(None, "toy")
    override(config, ["--config.objective.name=PlainObjective"])
    assert build.build_objective(config) == PlainObjective()
    plain = json.loads(config.to_json_best_effort()) | {"objective": {"name": "PlainObjective", "power": 3.0}}
    (tmp_path / "own.json").write_text(json.dumps(plain))
    assert build.build_objective(load_config(None, str(tmp_path / "own.json"))) == PlainObjective(3.0)


def test_the_schedule_of_a_recipe_is_a_part_of_its_model():
    config = tiny(load_config("vdm", None))
    override(config, ["--config.sde.gamma_min=-8.0", "--config.sde.num_segments=5"])
    model = build.build_model(config, build.build_data(config)[0])
    assert model.state_dict()["sde.weights"].shape == (5,)
    assert model.sde.log_snr(torch.tensor(model.sde.t_min)).item() == pytest.approx(8)


def test_discrete_times_are_the_levels_of_the_chain_that_is_configured():
    config = tiny(load_config("ddpm", "toy"))
    override(config, ["--config.sde.num_levels=50"])
    model = build.build_model(config, build.build_data(config)[0])
    assert build.build_objective(config).times.num_levels == model.sde.num_levels == 50
    assert build.build_objective(load_config("ddpm", None)).times.num_levels == 1000


@pytest.mark.parametrize("recipe", [None, "toy"])
def test_label_dropout_is_a_field(recipe):
    config = tiny(load_config(None, recipe))
    override(config, ["--config.network.label_dropout=0.2"])
    data = build.build_data(config)[0]
    network = build.build_model(config, data).network
    assert network.label_dropout == 0.2
    assert network.conditioning.label.num_embeddings == data.num_classes + 1


def test_a_network_that_does_not_suit_the_data_is_named():
    for recipe, network, message in (
        ("toy", "UNet", r"network\.name='UNet': needs samples \(channels.*--config\.network\.name=MLP"),
        (None, "MLP", r"network\.name='MLP': needs vectors.*--config\.network\.name=UNet"),
    ):
        config = load_config(None, recipe)
        data = build.build_data(config)[0]
        config.network.name = network
        with pytest.raises(UsageError, match=message):
            build.build_model(config, data)


def test_the_model_that_is_sampled_from_is_thresholded_as_the_configuration_says():
    config = tiny(load_config(None, "toy"))
    data = build.build_data(config)[0]
    model = build.build_model(config, replace(data, cond=None))
    assert build.threshold(config, model, model.codec, -1.0, 2.0) is model
    config.sampling.threshold = "static"
    static = build.threshold(config, model, model.codec, -1.0, 2.0)
    assert isinstance(static, ThresholdedModel)
    denoised = data.codec.decode(static.denoise(30 * torch.randn(64, 2), 0.9))
    assert -1 - 1e-5 <= denoised.min() < denoised.max() <= 2 + 1e-5
    config.sampling.threshold = "dynamic"
    config.sampling.quantile = 0.5
    assert build.threshold(config, model, model.codec, -1.0, 2.0).quantile == 0.5
    config.sampling.threshold = "hard"
    with pytest.raises(UsageError, match=r"config\.sampling\.threshold='hard': need 'none', 'static' or 'dynamic'"):
        build.threshold(config, model, model.codec, -1.0, 2.0)
    assert isinstance(model, NetworkScoreModel)


def test_the_flow_recipe_learns(device):
    """500 steps on two moons bring its held-out loss from 1.19 to 0.69."""
    config = tiny(load_config("flow", "toy"))
    config.training.num_steps = 500
    config.network.width = 64
    config.training.batch_size = 256
    trainer, held_out = trainer_of(config, device)
    before = trainer.held_out_loss(held_out)
    for _ in range(500):
        trainer.step()
    assert trainer.held_out_loss(held_out) < 0.7 * before


@pytest.mark.parametrize("network", ["UNet", "DiT"])
def test_the_kinds_of_conditions_follow_from_the_data(network):
    """A network is built for the parts that the condition of the data has, and trains on them."""
    config = tiny(default.get_config())
    fields = {"UNet": config.network.to_dict(), "DiT": {"width": 16, "depth": 1}}[network]
    config.network = fields | {"name": network}
    generator = torch.Generator().manual_seed(0)
    cond = {
        "label": torch.arange(20) % 4,
        "vector": torch.randn(20, 5, generator=generator),
        "image": torch.randn(20, 2, 4, 4, generator=generator),
        "tokens": torch.randn(20, 3, 6, generator=generator),
    }
    data = ArrayData(torch.randn(20, 1, 4, 4, generator=generator), cond)
    built = build.build_model(config, data).network
    assert (built.num_classes, built.vector_channels, built.image_channels, built.context_channels) == (4, 5, 2, 6)
    model = build.build_model(config, data)
    trainer = Trainer(model, data, build.build_objective(config), replace(build.build_options(config), batch_size=4))
    trainer.step()
    assert math.isfinite(trainer.pop_metrics()["loss"])
    assert math.isfinite(trainer.held_out_loss(data))


def test_bare_vectors_and_parts_that_a_network_does_not_take():
    config = tiny(load_config(None, "toy"))
    data = ArrayData(torch.randn(20, 2), torch.randn(20, 3))
    assert build.build_model(config, data).network.vector_channels == 3
    wrong = replace(data, cond={"image": torch.randn(20, 1, 2, 2)})
    with pytest.raises(UsageError, match=r"network.name='MLP': takes no 'image', and the condition of the data is"):
        build.build_model(config, wrong)


# autoencoders


@pytest.mark.parametrize(("side", "num_levels"), [(6, 1), (8, 1), (12, 2), (32, 3)])
def test_an_adversarial_autoencoder_has_a_discriminator_for_its_samples(side, num_levels):
    config = as_autoencoder(default.get_config())
    config.network.multipliers = (1, 2)
    data = ArrayData(torch.rand(4, 3, side, side))
    assert build.build_autoencoder(config, data).discriminator is None
    config.objective.adversarial_weight = 0.5
    torch.manual_seed(1)
    models = [build.build_autoencoder(config, data) for _ in range(2)]
    assert models[0].discriminator.num_levels == num_levels
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert build.build_objective(config)(models[0], data.values).isfinite().all()


def test_an_adversarial_autoencoder_of_tiny_images_is_refused():
    config = as_autoencoder(default.get_config())
    config.network.multipliers = (1, 2)
    config.objective.adversarial_weight = 0.5
    with pytest.raises(UsageError, match=r"shape \(3, 4, 4\): an adversarial term needs .* sides of 6 or more"):
        build.build_autoencoder(config, ArrayData(torch.rand(4, 3, 4, 4)))


def test_an_autoencoder_is_not_sharded():
    config = as_autoencoder(default.get_config())
    config.training.shard = True
    with pytest.raises(UsageError, match=r"training.shard=True: autoencoders are not sharded"):
        build.build_autoencoder(config, ArrayData(torch.rand(4, 3, 8, 8)))
