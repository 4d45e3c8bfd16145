"""Configurations: recipe, then overrides; every field is documented, and every mistake named."""

from __future__ import annotations

import importlib
import json
import re
import shlex

import pytest
import torch
from torch import nn

from samplers import DDIM
from scoresde import UsageError
from scoresde.app.config import (
    attribute_docs,
    describe_fields,
    documented_fields,
    from_json,
    load_config,
    of_checkpoint,
    override,
    override_sampling,
    recipes,
    sdes,
)
from scoresde.app.files import flat
from scoresde.registry import construct
from sde_configs import build, default

PUBLISHED = ("cifar10_ddpmpp_vp", "cifar10_edm", "cifar10_ncsnpp_ve", "dit_s", "imagenet64_adm")


def as_json(config):
    """A configuration as its run's config.json holds it."""
    return json.loads(config.to_json_best_effort())


@pytest.mark.parametrize("sde", sdes())
def test_every_sde_goes_with_another_recipe(sde):
    config, alone, toy = load_config(sde, "toy"), load_config(sde, None), load_config(None, "toy")
    for section in ("sde", "parametrization", "objective"):
        assert config[section].to_dict() == alone[section].to_dict()
    for section in ("data", "network", "training", "logging", "sampling"):
        assert config[section].to_dict() == toy[section].to_dict()


def test_the_sdes_are_the_recipes_that_leave_data_and_network_alone():
    assert sdes() == ["cosine", "ddpm", "edm", "flow", "smld", "subvp", "vdm", "ve", "vp"]
    others = {"toy", "digits_text", "upsampler", "cifar10_upsampler", "cifar10_autoencoder"}
    assert set(recipes()) == {*sdes(), *PUBLISHED, *others}


def test_an_upsampler_goes_with_every_sde():
    """The objective inside it is that of the SDE."""
    for sde in sdes():
        config, alone = load_config(sde, "upsampler"), load_config(sde, None)
        assert config.objective.name == "UpsamplingObjective"
        assert config.objective.objective.to_dict() == alone.objective.to_dict()
        assert build.build_objective(config).objective == build.build_objective(alone)
        assert config.sde.to_dict() == alone.sde.to_dict()


def test_published_recipes_describe_the_published_networks():
    """Their networks, without classes where those had none; nothing is read or downloaded."""
    sizes = {
        "cifar10_ddpmpp_vp": 61_804_419,
        "cifar10_ncsnpp_ve": 62_758_915,
        "cifar10_edm": 55_733_891 - 9 * 128,  # without the labels of augmentations
        "imagenet64_adm": 295_904_454 - 1000 * 768,  # without its classes
    }
    for name, size in sizes.items():
        network = load_config(None, name).network.to_dict()
        with torch.device("meta"):
            made = construct(network | {"channels_in": 3}, nn.Module, "network")
        assert sum(value.numel() for value in made.state_dict().values()) == size, name
    for name in PUBLISHED:
        doc = importlib.import_module(f"sde_configs.{name}").__doc__
        assert re.search(r"V100|A100|H100", doc), name  # each states its cost


def test_no_two_sdes_of_the_command_line_train_the_same():
    configs = [load_config(sde, None).to_dict() for sde in sdes()]
    assert all(one != other for k, one in enumerate(configs) for other in configs[:k])


def test_without_sde_and_config_it_is_vp():
    assert load_config(None, None).to_dict() == load_config("vp", None).to_dict() == default.get_config().to_dict()


def test_every_field_is_listed_with_a_comment():
    listed = {}
    for line in describe_fields().splitlines():
        match = re.fullmatch(r"  --config\.([\w.]+)=(.*?)\s{2,}(\S.*)", line)
        assert match, f"no documentation: {line}"
        listed[match[1]] = match[2]
    fields = flat(default.get_config().to_dict())
    assert listed.keys() == fields.keys()
    for name, value in fields.items():
        typed = shlex.split(f"--config.{name}={listed[name]}")  # as a shell takes it
        assert typed == [f"--config.{name}={value}"]
        config = default.get_config()
        override(config, typed)
        assert config.to_dict() == default.get_config().to_dict(), name


PILOTED = ("sampling.pc.snr", "sampling.pc.corrector_steps")


def test_the_fields_of_a_sampler_are_documented_by_its_class():
    meanings = {name: text for name, _, text in documented_fields()}
    for name, cls in build.SAMPLERS.items():
        for attribute, text in attribute_docs(cls).items():
            field = f"sampling.{name}.{attribute}"
            assert meanings.get(field) == text or field in PILOTED or field not in meanings
    assert "0: chosen by a pilot run" in meanings["sampling.pc.snr"]
    assert "chosen by the pilot" in meanings["sampling.pc.corrector_steps"]


def test_fields_can_be_listed_by_how_they_begin():
    lines = describe_fields("sampling.").splitlines()
    assert all(line.startswith("  --config.sampling.") for line in lines)
    assert len(lines) == sum(field.startswith("sampling.") for field in flat(default.get_config().to_dict()))


def test_a_configuration_comes_back_from_json():
    for config in (load_config("ve", "toy"), load_config("vdm", "toy")):
        assert from_json(as_json(config), "test").to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {}}, r"lacks the field training\."),
        ({"seed": "one"}, r"seed='one'; need a value like 0"),
        ({"seed": True}, r"seed=True"),
        ({"seeed": 1}, r"'seeed': did you mean 'seed'"),
        ({"training": as_json(default.get_config())["training"] | {"lrr": {}}}, r"'training\.lrr': did you mean"),
        ({"network": {}}, r"lacks the field network\.name"),
        ({"objective": {"name": "DenoisingObjective"}}, r"lacks the field objective\.(times|weighting)\.name"),
        ({"objective": {"times": {}, "weighting": {}}}, r"lacks the field objective\.name"),
    ],
)
def test_a_configuration_with_missing_or_strange_fields_is_named(change, message):
    with pytest.raises(UsageError, match=message):
        from_json({**as_json(default.get_config()), **change}, "config='x.json'")


def test_a_checkpoint_may_be_older_than_a_field():
    values = as_json(default.get_config())
    del values["training"]["ema_decay"], values["sampling"]["pc"]["corrector_steps"], values["sampling"]["ddim"]
    config = of_checkpoint(values)
    assert build.build_sampler(config, "pc", None).corrector_steps == 1
    assert build.build_sampler(config, "ddim", None) == DDIM()
    assert of_checkpoint({**values, "sampling": {}}).sampling.batch_size == 0
    with pytest.raises(UsageError, match=r"config: lacks the field sde\.name"):
        of_checkpoint({**values, "sde": {}})


def test_overrides_change_fields_in_either_spelling():
    config = default.get_config()
    arguments = ["--config.training.lr=0.5", "--config.network.multipliers=(1,2,3)", "--config.seed", "9"]
    override(config, [*arguments, "--config.data.class_conditional=false"])
    assert (config.training.lr, config.network.multipliers, config.seed) == (0.5, (1, 2, 3), 9)
    assert config.data.class_conditional is False


def test_of_a_trained_model_only_sampling_can_change():
    config = default.get_config()
    override_sampling(config, ["--config.sampling.pc.snr=0.2"])
    assert config.sampling.pc.snr == 0.2
    with pytest.raises(UsageError, match=r"config\.training\.lr=3\.0.*only --config\.sampling"):
        override_sampling(config, ["--config.training.lr=3"])


@pytest.mark.parametrize("value", ["0", None, 3, [1]])
@pytest.mark.parametrize("field", ["sampling.adams", "sampling.ode", "training", "objective.times"])
def test_a_value_in_the_place_of_a_section_is_named(tmp_path, field, value):
    values = json.loads(default.get_config().to_json_best_effort())
    place = values
    *path, last = field.split(".")
    for name in path:
        place = place[name]
    place[last] = value
    file = tmp_path / "c.json"
    file.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=re.escape(field)):
        load_config(None, str(file))
