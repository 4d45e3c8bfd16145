"""Names in files: every class comes back from its description, and no name imports or runs anything."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import scoresde
from scoresde import (
    ClassifierNetwork,
    Codec,
    DenoisingObjective,
    LogSigmaInput,
    Network,
    NoiseParametrization,
    Objective,
    Scaling,
    TimeInput,
    UsageError,
    autoencoding,
    classification,
    contrastive,
    hybrid,
    learned_sde,
    named_sdes,
    networks,
    objective,
    parametrization,
    registry,
    upsampling,
)
from scoresde.networks import presets
from scoresde.objective import TrainingTimes, Weighting
from scoresde.parametrization import Input, Parametrization
from scoresde.sde import SDE

EXAMPLES = [
    named_sdes.VPSDE(beta_min=0.2, beta_max=15.0, t_min=1e-4, t_max=0.9),
    named_sdes.SubVPSDE(beta_min=0.3, beta_max=12.0, t_min=2e-3, t_max=0.8),
    named_sdes.VESDE(sigma_min=0.02, sigma_max=30.0, t_min=1e-4, t_max=0.7),
    named_sdes.CosineSDE(s=0.01, t_min=1e-3, t_max=0.9),
    named_sdes.EDMSDE(t_min=0.01, t_max=40.0),
    named_sdes.RectifiedFlowSDE(t_min=1e-2, t_max=0.9),
    named_sdes.DiscreteVPSDE(beta_start=2e-4, beta_end=0.03, num_levels=100),
    named_sdes.DiscreteVPSDE(betas=(0.1, 0.3, 0.2), t_max=0.9),
    learned_sde.LearnedVPSDE(gamma_min=-9.0, gamma_max=4.0, num_segments=7, t_min=1e-3, t_max=0.9, t_end=1e-2),
    learned_sde.LearnedVPSDE(support=(1e-4, 2.0), t_min=1e-3),
    parametrization.NoiseParametrization(sigma_data=0.7),
    parametrization.DenoisedParametrization(sigma_data=0.7),
    parametrization.ScoreParametrization(0.7, LogSigmaInput()),
    parametrization.VelocityParametrization(0.7, TimeInput(1000.0, -1.0)),
    parametrization.FlowParametrization(),
    parametrization.EDMParametrization(sigma_data=0.7),
    parametrization.UnitVarianceInput(),
    parametrization.TimeInput(scale=500.0, offset=2.0),
    parametrization.LogSigmaInput(),
    objective.UniformTimes(),
    objective.DiscreteTimes(num_levels=17),
    objective.LadderTimes(num_levels=19),
    objective.LogNormalNoiseLevels(mean=-0.4, std=1.5),
    objective.NoiseWeighting(),
    objective.DenoisedWeighting(),
    objective.VelocityWeighting(),
    objective.EDMWeighting(),
    objective.MinSNRWeighting(gamma=3.0),
    objective.LikelihoodWeighting(),
    objective.FlowWeighting(),
    objective.DenoisingObjective(objective.LogNormalNoiseLevels(std=0.5), objective.MinSNRWeighting(2.0)),
    objective.VariationalObjective(),
    hybrid.HybridObjective(objective.DiscreteTimes(30), objective.VelocityWeighting(), num_steps=15, vlb_weight=0.01),
    autoencoding.AutoencodingObjective(1.0, "l2", 0.1, 0.5, 7),
    classification.ClassificationObjective(objective.LogNormalNoiseLevels(std=0.7)),
    upsampling.UpsamplingObjective(objective.VariationalObjective(), 3, "area", antialias=False, largest_noise=0.2),
    contrastive.ContrastiveObjective(),
    networks.MLP(2, width=8, depth=2, num_classes=3, learned_variance=True),
    networks.UNet(2, channels=4, multipliers=(1, 3), num_blocks=2, num_classes=3, label_dropout=0.2),
    networks.UNet(2, **presets.NCSNPP | {"channels": 8, "num_blocks": 1, "attention_levels": (0, 2)}),
    networks.MPUNet(2, channels=4, multipliers=(1, 3), attention_levels=(1,), head_channels=4, dropout=0.2),
    networks.DiT(2, patch_size=4, width=24, depth=1, num_heads=3, mlp_ratio=2.0, context_channels=6, dims=3),
    networks.MLPClassifier(2, 5, width=8, depth=2),
    networks.UNetClassifier(2, 5, channels=4, multipliers=(1, 3), num_blocks=2),
    networks.LinearAutoencoder(3, 2),
    networks.ConvAutoencoder(2, channels=4, multipliers=(1, 3), latent_channels=2, kind="fsq", levels=(3, 5), dims=1),
    networks.TextTransformer(("<pad>", "<unknown>", "seven"), width=8, depth=1, num_heads=2, max_length=5, dropout=0.1),
    networks.ImageEncoder(2, width=6, channels=4, depth=2, dims=1),
    networks.ContrastiveNetwork(
        networks.TextTransformer(("<pad>", "<unknown>", "one"), width=4, depth=1, num_heads=1),
        networks.ImageEncoder(1, channels=2, depth=1),
        size=5,
    ),
    networks.TinyAutoencoder(1, 8, 2, (1, 2), (1, 1), pooled=True, bound=2.0),
    networks.PatchDiscriminator(2, channels=4, num_levels=2, dims=1),
    Scaling((0.5, 1.0), 2.0),
]


def own(name):
    """Whether a registered class is the library's own; other tests register theirs."""
    return registry.classes(object)[name].__module__.startswith("scoresde.")


def through_json(thing, kind, path="thing"):
    return registry.construct(json.loads(json.dumps(registry.describe(thing))), kind, path)


def test_there_is_an_example_of_every_class():
    assert {type(e).__name__ for e in EXAMPLES} == set(filter(own, registry.classes(object)))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: type(e).__name__)
def test_every_class_comes_back_through_json(example):
    back = through_json(example, type(example).__mro__[1])
    assert type(back) is type(example)
    assert registry.describe(back) == registry.describe(example)
    if isinstance(example, nn.Module):
        shapes = {k: v.shape for k, v in example.state_dict().items()}
        assert {k: v.shape for k, v in back.state_dict().items()} == shapes
    else:
        assert back == example


def test_the_classes_of_a_kind():
    classifiers = {"MLPClassifier", "UNetClassifier"}
    autoencoders = {"LinearAutoencoder", "ConvAutoencoder", "TinyAutoencoder"}
    readers = {"TextTransformer", "ImageEncoder", "ContrastiveNetwork"}
    assert {"MLP", "UNet", "MPUNet", "DiT"} | classifiers | autoencoders | readers | {"PatchDiscriminator"} == set(
        filter(own, registry.classes(nn.Module))
    )  # LearnedVPSDE is a module too
    assert autoencoders == set(filter(own, registry.classes(networks.AutoencoderNetwork)))
    assert classifiers == set(filter(own, registry.classes(ClassifierNetwork)))
    assert {"MLP", "UNet", "MPUNet", "DiT"} == set(filter(own, registry.classes(Network)))
    assert {"TimeInput", "LogSigmaInput", "UnitVarianceInput"} == set(filter(own, registry.classes(Input)))
    assert {"Scaling"} == set(filter(own, registry.classes(Codec)))
    assert "LearnedVPSDE" in registry.classes(SDE)
    for kind in (TrainingTimes, Weighting, Parametrization, Objective):
        assert all(issubclass(cls, kind) for cls in registry.classes(kind).values())
        assert registry.classes(kind)


# classes of the user's own


@pytest.fixture
def register(monkeypatch):
    """`registry.register` for the length of a test."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    return registry.register


@dataclass(frozen=True)
class PowerWeighting(Weighting):
    """(alpha / sigma)^power, times another weighting."""

    power: float = 1.0
    base: Weighting = field(default_factory=objective.DenoisedWeighting)

    def __call__(self, model, level):
        return (level.alpha / level.sigma) ** self.power * self.base(model, level)


@dataclass(frozen=True)
class Squared(Input):
    """The square of another input's label."""

    inner: Input = TimeInput()  # noqa: RUF009  frozen
    powers: tuple[float, ...] = (2.0,)

    def c_in(self, level, sigma_data):
        return self.inner.c_in(level, sigma_data)

    def c_noise(self, level):
        return self.inner.c_noise(level) ** self.powers[0]


def test_a_user_s_class_comes_back_with_what_it_holds(register):
    assert register(PowerWeighting) is PowerWeighting  # a decorator
    register(Squared)
    whole = DenoisingObjective(objective.DiscreteTimes(7), PowerWeighting(2.0, PowerWeighting(0.5)))
    assert through_json(whole, Objective) == whole
    emitted = NoiseParametrization(0.3, Squared(TimeInput(10.0), (3.0, 1.0)))
    assert through_json(emitted, Parametrization) == emitted
    assert "Squared" in registry.classes(Input)
    assert registry.is_registered(Squared)


def test_objects_in_lists_come_back(register):
    @register
    @dataclass(frozen=True)
    class Several:
        parts: tuple[Weighting, ...] = ()
        table: tuple[tuple[float, ...], ...] = ()
        sizes: tuple[int, ...] | None = None

    some = Several((objective.MinSNRWeighting(2.0), objective.NoiseWeighting()), ((1.0, 2.0), ()), (3, 4))
    assert through_json(some, Several) == some
    assert through_json(Several(), Several) == Several()


def test_a_class_whose_annotations_mean_nothing_outside_its_module_comes_back(register):
    @register
    class Wide:
        def __init__(self, what: "OnlyForTypeCheckers" = TimeInput()):  # noqa: B008, F821
            self.what = what

    assert through_json(Wide(TimeInput(5.0)), Wide).what == TimeInput(5.0)


def test_what_would_not_come_back_is_refused_when_it_is_described(register):
    @register
    class Declared:
        def __init__(self, steps: int = 3, what: Input = TimeInput()):  # noqa: B008
            self.steps, self.what = steps, what

    assert through_json(Declared(4), Declared).steps == 4
    with pytest.raises(UsageError, match=r"^Declared\.steps=2\.5: need a value like 3"):
        registry.describe(Declared(2.5))
    with pytest.raises(UsageError, match=r"^Declared\.what: holds a VPSDE, and is declared as Input"):
        registry.describe(Declared(3, named_sdes.VPSDE()))
    assert registry.describe(TimeInput(np.float64(2.0)))["scale"] == 2.0


def test_a_description_may_hold_tuples():
    network = registry.construct({"name": "UNet", "channels_in": 1, "multipliers": (1, 3)}, nn.Module, "network")
    assert network.multipliers == (1, 3)
    assert registry.construct({"name": "Scaling", "scale": (2.0, 3)}, Codec, "codec") == Scaling(scale=(2.0, 3))


def test_a_class_is_unknown_before_it_is_registered(register):
    whole = DenoisingObjective(weighting=PowerWeighting())
    with pytest.raises(UsageError, match=r"^DenoisingObjective\.weighting: holds a PowerWeighting.*scoresde\.register"):
        registry.describe(whole)
    with pytest.raises(UsageError, match=r"^PowerWeighting: cannot be described.*register it with scoresde\.register"):
        registry.describe(PowerWeighting())
    register(PowerWeighting)
    described = registry.describe(whole)
    registry._CLASSES.pop("PowerWeighting")
    with pytest.raises(
        UsageError, match=r"unknown loss\.weighting\.name 'PowerWeighting': .*known are .*NoiseWeighting"
    ):
        registry.construct(described, Objective, "loss")


def test_a_class_may_be_registered_again_and_a_taken_name_is_refused(register):
    register(PowerWeighting)
    register(PowerWeighting)

    class VPSDE:
        pass

    with pytest.raises(UsageError, match=r"the name VPSDE is taken by scoresde\.named_sdes\.VPSDE; rename your class"):
        register(VPSDE)
    assert registry.classes(SDE)["VPSDE"] is named_sdes.VPSDE


def test_a_name_alone_is_not_the_class():
    class MLP(nn.Module):
        pass

    for thing in (nn.Linear(1, 1), MLP()):
        assert not registry.is_registered(type(thing))
        with pytest.raises(UsageError, match="only registered classes"):
            registry.describe(thing)


def test_what_a_description_cannot_hold_is_refused(register):
    @register
    class Keeps:
        def __init__(self, function, tensor=None):
            self.function, self.tensor = function, tensor

    @register
    class Forgets:
        def __init__(self, size):
            self.length = size

    with pytest.raises(UsageError, match=r"^Keeps\.function: holds a function, which a file cannot describe"):
        registry.describe(Keeps(lambda x: x))
    with pytest.raises(UsageError, match=r"^Keeps\.tensor: holds a Tensor"):
        registry.describe(Keeps(None, torch.zeros(2)))
    with pytest.raises(UsageError, match=r"^Forgets: does not keep its argument 'size' as an attribute"):
        registry.describe(Forgets(3))
    for loose in (lambda self, *sizes: None, lambda self, **sizes: None):
        with pytest.raises(UsageError, match=r"register: Loose takes \['sizes'\]; a description needs every argument"):
            register(type("Loose", (), {"__init__": loose}))


# descriptions that make nothing

BROKEN = {
    "near": ({"name": "VPSDEE"}, SDE, "unknown part.name 'VPSDEE': did you mean 'VPSDE'"),
    "another kind": ({"name": "MLP", "dim": 2}, SDE, "unknown part.name 'MLP'"),
    "an SDE as a network": ({"name": "LearnedVPSDE"}, nn.Module, "unknown part.name 'LearnedVPSDE'"),
    "no name": ({}, SDE, "unknown part.name 'None'"),
    "unknown argument": (
        {"name": "VPSDE", "beta_mim": 1.0},
        SDE,
        "argument of VPSDE in part: 'beta_mim': did you mean",
    ),
    "another type": ({"name": "VPSDE", "beta_min": "low"}, SDE, r"part\.beta_min='low': need a value like 0\.1"),
    "a truth": ({"name": "MLP", "dim": 2, "width": True}, nn.Module, r"part\.width=True: need a value like 128"),
    "a wrong value": ({"name": "VPSDE", "beta_min": -1.0}, SDE, r"beta_min=-1\.0"),
    "a missing argument": ({"name": "MLP"}, nn.Module, "part: MLP cannot be constructed from {}"),
    "a nested kind": (
        {"name": "NoiseParametrization", "input": {"name": "VPSDE"}},
        Parametrization,
        r"unknown part\.input\.name 'VPSDE'.*known are LogSigmaInput",
    ),
    "a nested word": (
        {"name": "NoiseParametrization", "input": "TimeInput"},
        Parametrization,
        r"part\.input='TimeInput'",
    ),
}


@pytest.mark.parametrize(("description", "kind", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_description_is_named_in_one_line(description, kind, message):
    with pytest.raises(UsageError, match=message) as error:
        registry.construct(description, kind, "part")
    assert "\n" not in str(error.value)


def test_a_name_in_a_file_imports_nothing(tmp_path):
    """Names of modules that lie on the path, of the standard library and of registered classes' modules."""
    (tmp_path / "trap.py").write_text("open('sprung', 'w')\nclass Trap: pass\n")
    program = """
import sys
from scoresde import UsageError, registry
from scoresde.sde import SDE
for name in ("trap.Trap", "trap", "Trap", "os.system", "antigravity", "scoresde.named_sdes.VPSDE", "__import__"):
    try:
        registry.construct({"name": name, "t_min": 0.5}, SDE, "sde")
    except UsageError:
        continue
    raise SystemExit(f"{name} was taken")
assert "trap" not in sys.modules and "antigravity" not in sys.modules
"""
    root = Path(scoresde.__file__).parent.parent
    environment = {"PYTHONPATH": f"{root}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "sprung").exists()
    again = subprocess.run([sys.executable, "-c", "import trap"], cwd=tmp_path, env=environment, timeout=120)
    assert again.returncode == 0
    assert (tmp_path / "sprung").exists()  # the trap works
