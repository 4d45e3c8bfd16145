"""Configurations: every recipe becomes objects that train and sample, and every field is documented."""

from __future__ import annotations

import importlib
import json
import math
import re

import pytest
import torch

from samplers import DDIM, Heun
from scoresde import UsageError, VariationalObjective, checkpoint
from scoresde.app.config import (
    SDES,
    describe_fields,
    from_json,
    load_config,
    of_checkpoint,
    override,
    override_sampling,
    recipes,
)
from scoresde.app.run_folder import flat
from scoresde.data import ArrayData
from scoresde.training import Trainer
from sde_configs import build, default


def tiny(config):
    """The same configuration with a network that is quick."""
    if config.network.name == "UNet":
        config.network.channels = 8
    else:
        config.network.width = 16
    config.training.batch_size = 16
    return config


@pytest.mark.parametrize("recipe", recipes())
def test_each_recipe_builds_and_takes_a_step(device, recipe):
    config = tiny(importlib.import_module(f"sde_configs.{recipe}").get_config())
    data, held_out = build.build_data(config)
    model = build.build_model(config, data).to(device)
    trainer = Trainer(model, data, build.build_objective(config, model), build.build_settings(config), config.seed)
    before = model.network.last.bias.detach().clone()
    trainer.step()
    assert math.isfinite(trainer.pop_metrics()["loss"])
    assert not torch.equal(model.network.last.bias, before)
    assert math.isfinite(trainer.held_out_loss(ArrayData(held_out.values[:32], held_out.labels[:32], data.scaling)))


@pytest.mark.parametrize("sde", SDES)
def test_every_sde_goes_with_another_recipe(sde):
    config, alone, toy = load_config(sde, "toy"), load_config(sde, None), load_config(None, "toy")
    for section in ("sde", "parametrization", "objective"):
        assert config[section].to_dict() == alone[section].to_dict()
    for section in ("data", "network", "training", "logging", "sampling"):
        assert config[section].to_dict() == toy[section].to_dict()


def test_the_sdes_of_the_command_line_are_different_classes():
    assert len({load_config(sde, None).sde.name for sde in SDES}) == len(SDES) == 8


def test_without_sde_and_config_it_is_vp():
    assert load_config(None, None).to_dict() == load_config("vp", None).to_dict() == default.get_config().to_dict()


@pytest.mark.parametrize("name", build.SAMPLERS)
def test_each_sampler_builds_with_the_fields_of_the_configuration(name):
    config = default.get_config()
    sampler = build.build_sampler(config, name, None)
    assert type(sampler) is build.SAMPLERS[name]
    for field, value in config.sampling[name].items():
        if field == "step" or (field, value) == ("snr", 0):  # chooses the class; stands for a pilot run
            continue
        assert getattr(sampler, field) == value


def test_ode_with_a_number_of_steps_is_heun():
    assert build.build_sampler(default.get_config(), "ode", 7) == Heun()


def test_a_field_that_a_sampler_does_not_have_is_named():
    config = default.get_config()
    config.sampling.ddim.rho = 7.0
    with pytest.raises(UsageError, match=r"config\.sampling\.ddim.*rho"):
        build.build_sampler(config, "ddim", None)


def test_every_field_is_listed_with_a_comment():
    lines = describe_fields().splitlines()
    listed = {}
    for line in lines:
        match = re.fullmatch(r"  --config\.([\w.]+)=(.*?)\s{2,}(\S.*)", line)
        assert match, f"no documentation: {line}"
        listed[match[1]] = match[2]
    assert listed == {k: repr(v) for k, v in flat(default.get_config().to_dict()).items()}


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
    assert model.parametrization.sigma_data == pytest.approx(data.std(), rel=1e-6)
    assert build.build_objective(config, model).weighting.sigma_data == model.parametrization.sigma_data
    config.parametrization.sigma_data = 0.25
    assert build.build_model(config, data).parametrization.sigma_data == 0.25


def test_a_class_that_only_held_out_data_would_have_is_named(tmp_path):
    import numpy as np

    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))  # that of ArrayData.split
    labels = np.zeros(20, dtype=np.int64)
    labels[order[-1]] = 1
    np.savez(tmp_path / "rare.npz", x=np.random.default_rng(0).normal(size=(20, 2)), labels=labels)
    config = load_config(None, "toy")
    config.data.path = str(tmp_path / "rare.npz")
    with pytest.raises(UsageError, match=r"data\.held_out=0\.25: leaves none of class 1"):
        build.build_data(config)


def test_a_configuration_comes_back_from_json():
    config = load_config("ve", "toy")
    back = from_json(json.loads(config.to_json_best_effort()), "test")
    assert back.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {}}, r"lacks the field training\."),
        ({"seed": "one"}, r"seed='one'; need a value like 0"),
        ({"seed": True}, r"seed=True"),
        ({"seeed": 1}, r"'seeed': did you mean 'seed'"),
        ({"network": {}}, r"lacks the field network\.name"),
    ],
)
def test_a_configuration_with_missing_or_strange_fields_is_named(change, message):
    with pytest.raises(UsageError, match=message):
        from_json({**json.loads(default.get_config().to_json_best_effort()), **change}, "config='x.json'")


def test_a_configuration_may_be_older_than_the_name_of_its_objective():
    values = json.loads(load_config("edm", "toy").to_json_best_effort())
    del values["objective"]["name"]
    config = tiny(from_json(values, "test"))
    model = build.build_model(config, build.build_data(config)[0])
    assert build.build_objective(config, model) == build.build_objective(load_config("edm", None), model)
    del values["objective"]["times"]
    with pytest.raises(UsageError, match=r"lacks the field objective\.times\.name"):
        from_json(values, "test")


def test_the_objective_is_chosen_by_name():
    config = tiny(load_config("vdm", "toy"))
    assert from_json(json.loads(config.to_json_best_effort()), "test").to_dict() == config.to_dict()
    model = build.build_model(config, build.build_data(config)[0])
    assert build.build_objective(config, model) == VariationalObjective()
    fixed = load_config(None, "toy")
    override(fixed, ["--config.objective.name=VariationalObjective"], ())
    assert build.build_objective(fixed, model) == VariationalObjective()
    with pytest.raises(UsageError, match=r"unknown field --config\.objective\.weighting\.name"):
        override(config, ["--config.objective.weighting.name=NoiseWeighting"], ())
    fixed.objective.name = "VariationalObjectiv"
    with pytest.raises(UsageError, match=r"config\.objective\.name 'VariationalObjectiv': did you mean"):
        build.build_objective(fixed, model)


def test_the_schedule_of_a_recipe_is_a_part_of_its_model():
    config = tiny(load_config("vdm", None))
    override(config, ["--config.sde.gamma_min=-8.0", "--config.sde.num_knots=5"], ())
    model = build.build_model(config, build.build_data(config)[0])
    assert model.state_dict()["sde.weights"].shape == (5,)
    assert model.sde.log_snr(torch.tensor(model.sde.t_min)).item() == pytest.approx(8)


def test_a_checkpoint_may_be_older_than_a_field():
    values = json.loads(default.get_config().to_json_best_effort())
    del values["training"]["ema_decay"], values["sampling"]["pc"]["corrector_steps"], values["sampling"]["ddim"]
    config = of_checkpoint(values)
    assert build.build_sampler(config, "pc", None).corrector_steps == 1
    assert build.build_sampler(config, "ddim", None) == DDIM()
    assert of_checkpoint({**values, "sampling": {}}).sampling.batch_size == 500
    with pytest.raises(UsageError, match=r"config: lacks the field sde\.name"):
        of_checkpoint({**values, "sde": {}})


def test_overrides_change_fields_in_either_spelling():
    config = default.get_config()
    arguments = ["--config.training.lr=0.5", "--config.network.multipliers=(1,2,3)", "--config.seed", "9"]
    override(config, [*arguments, "--config.data.class_conditional=false"], ())
    assert (config.training.lr, config.network.multipliers, config.seed) == (0.5, (1, 2, 3), 9)
    assert config.data.class_conditional is False


def test_of_a_trained_model_only_sampling_can_change():
    config = default.get_config()
    override_sampling(config, ["--config.sampling.pc.snr=0.2"], ())
    assert config.sampling.pc.snr == 0.2
    with pytest.raises(UsageError, match=r"config\.training\.lr=3\.0.*only --config\.sampling"):
        override_sampling(config, ["--config.training.lr=3"], ())


def test_recipes_describe_models_that_checkpoints_can_hold():
    for recipe in recipes():
        config = tiny(load_config(None, recipe))
        model = build.build_model(config, build.build_data(config)[0])
        described = json.loads(json.dumps(checkpoint.describe_model(model)))
        assert checkpoint.describe_model(checkpoint.build_model(described)) == checkpoint.describe_model(model)


def test_discrete_times_are_the_levels_of_the_chain_that_is_configured():
    config = tiny(load_config("ddpm", "toy"))
    override(config, ["--config.sde.num_levels=50"], ())
    model = build.build_model(config, build.build_data(config)[0])
    assert build.build_objective(config, model).times.num_levels == model.sde.num_levels == 50
    assert build.build_objective(load_config("ddpm", None), model).times.num_levels == 1000


@pytest.mark.parametrize("recipe", [None, "toy"])
def test_label_dropout_is_a_field(recipe):
    config = tiny(load_config(None, recipe))
    override(config, ["--config.network.label_dropout=0.2"], ())
    data = build.build_data(config)[0]
    network = build.build_model(config, data).network
    assert network.label_dropout == 0.2
    assert network.conditioning.label.num_embeddings == data.num_classes + 1


def test_the_flow_recipe_learns(device):
    """500 steps on two moons bring its held-out loss from 1.19 to 0.69."""
    config = tiny(load_config("flow", "toy"))
    config.training.num_steps, config.network.width, config.training.batch_size = 500, 64, 256
    data, held_out = build.build_data(config)
    model = build.build_model(config, data).to(device)
    objective = build.build_objective(config, model)
    trainer = Trainer(model, data, objective, build.build_settings(config), config.seed)
    before = trainer.held_out_loss(held_out)
    for _ in range(500):
        trainer.step()
    after = trainer.held_out_loss(held_out)
    assert after < 0.7 * before
