"""The contract of a network: which conditions it takes, how they are hidden, and who asks."""

import pytest
import torch
from torch import nn

from samplers import DDIM, sample
from scoresde import (
    MLP,
    VPSDE,
    DenoisingObjective,
    Network,
    NetworkScoreModel,
    NoiseParametrization,
    TrainingOptions,
    UNet,
    UsageError,
)
from scoresde.condition import describe
from scoresde.data import ArrayData
from scoresde.training import Trainer

NETWORKS = {
    "mlp": lambda **labels: MLP(2, width=8, depth=1, **labels),
    "unet": lambda **labels: UNet(1, channels=4, **labels),
}
each_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


class TextNetwork(Network):
    """A network for vectors with a condition of two parts; it keeps what it is given."""

    def __init__(self, cond_dropout=0.0):
        super().__init__()
        self.cond_dropout = cond_dropout
        self.layer = nn.Linear(2, 2)
        self.seen = []

    def forward(self, x, c_noise, cond=None):
        self.seen.append(cond)
        weight = (cond["tokens"] * cond["mask"]).sum(1, keepdim=True)
        return self.layer(x) + weight

    def check_cond(self, cond):
        if not isinstance(cond, dict) or cond.keys() != {"tokens", "mask"}:
            raise UsageError(f"cond: {describe(cond)}; need tokens and mask")

    def null_cond(self, cond, hidden):
        return {"tokens": cond["tokens"], "mask": cond["mask"] & ~hidden[:, None]}


def text(num=8):
    tokens = torch.arange(3.0 * num).reshape(num, 3)
    return {"tokens": tokens, "mask": torch.ones(num, 3, dtype=torch.bool)}


def model_of(network, device="cpu"):
    return NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (2,)).to(device)


def test_a_network_says_what_it_needs_or_is_none():
    with pytest.raises(TypeError, match="abstract"):
        Network()

    class Half(Network):
        def forward(self, x, c_noise, cond=None):
            return x

    with pytest.raises(TypeError, match="check_cond"):
        Half()


# labels: the built-in networks

ACCEPTED = {
    "no classes": ({}, None),
    "labels": ({"num_classes": 3}, torch.tensor([0, 2, 1])),
    "short labels": ({"num_classes": 3}, torch.tensor([0, 2, 1], dtype=torch.uint8)),
    "labels that may be hidden": ({"num_classes": 3, "label_dropout": 0.1}, torch.tensor([0, 2])),
    "the null label": ({"num_classes": 3, "label_dropout": 0.1}, torch.tensor([3, 2])),
    "no labels": ({"num_classes": 3, "label_dropout": 0.1}, None),
}
REFUSED = {
    "needless": ({}, torch.tensor([0]), r"made without classes \(num_classes=0\); leave it out"),
    "missing": ({"num_classes": 3}, None, r"cond: no condition; need labels 0\.\.2, one a sample$"),
    "too large": ({"num_classes": 3}, torch.tensor([0, 3]), r"labels from 0 to 3; need labels 0\.\.2, one a sample$"),
    "negative": ({"num_classes": 3}, torch.tensor([-1, 1]), "labels from -1 to 1"),
    "beyond null": (
        {"num_classes": 3, "label_dropout": 0.1},
        torch.tensor([4]),
        r"labels from 4 to 4; need labels 0\.\.2, one a sample; 3 stands for none",
    ),
    "floats": ({"num_classes": 3}, torch.tensor([0.0]), r"cond: a tensor \(float32, \(1,\)\); need labels"),
    "one hot": ({"num_classes": 3}, torch.eye(3, dtype=torch.long), r"cond: a tensor \(int64, \(3, 3\)\); need labels"),
    "one for all": ({"num_classes": 3}, torch.tensor(1), r"cond: a tensor \(int64, \(\)\); need labels"),
    "a dict": ({"num_classes": 3}, {"labels": torch.tensor([0])}, r"cond\['labels'\] \(int64, \(1,\)\); need labels"),
    "a list": ({"num_classes": 3}, [0, 1], "cond: is a list; need a tensor"),
}


@each_network
def test_labels_that_are_taken(make):
    for labels, cond in ACCEPTED.values():
        make(**labels).check_cond(cond)


@pytest.mark.parametrize(("labels", "cond", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_labels_that_are_refused_in_one_line(labels, cond, message):
    for make in NETWORKS.values():
        with pytest.raises(UsageError, match=message) as error:
            make(**labels).check_cond(cond)
        assert "\n" not in str(error.value)


@each_network
def test_hidden_labels_are_the_null_label_and_others_stay(make, device):
    network = make(num_classes=3, label_dropout=0.25).to(device)
    labels, hidden = torch.tensor([0, 2, 1], device=device), torch.tensor([True, False, True], device=device)
    assert network.cond_dropout == 0.25
    assert network.null_cond(labels, hidden).tolist() == [3, 2, 3]
    assert labels.tolist() == [0, 2, 1]
    assert network.null_cond(None, hidden).tolist() == [3, 3, 3]
    network.check_cond(network.null_cond(labels, hidden))


@each_network
def test_a_network_without_a_null_label_hides_nothing(make):
    for labels in ({}, {"num_classes": 3}):
        network = make(**labels)
        assert network.cond_dropout == 0
        with pytest.raises(UsageError, match=r"label_dropout=0: .*network\.label_dropout=0\.1"):
            network.null_cond(torch.tensor([0]), torch.tensor([True]))


# a model asks its network


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.compile itself
def test_a_model_asks_the_network_also_a_compiled_one():
    network = MLP(2, width=8, depth=1, num_classes=3, label_dropout=0.1)
    for model in (model_of(network), model_of(torch.compile(network))):
        assert model.contract() is network
        model.check_cond(torch.tensor([3]))
        with pytest.raises(UsageError, match="labels from 4 to 4"):
            model.check_cond(torch.tensor([4]))
        assert model.null_cond(torch.tensor([0]), torch.tensor([True])).tolist() == [3]


def test_of_another_module_nothing_is_known():
    class Plain(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return 0 * x

    model = model_of(Plain())
    assert model.contract() is None
    model.check_cond({"anything": torch.zeros(3)})
    with pytest.raises(UsageError, match=r"network of Plain: .*make it a scoresde\.networks\.Network with null_cond"):
        model.null_cond(torch.zeros(1), torch.tensor([True]))


@pytest.mark.parametrize("cond", [None, torch.zeros(8), {"tokens": torch.zeros(8, 3)}], ids=["none", "tensor", "half"])
def test_conditions_that_a_network_refuses_reach_neither_training_nor_sampling(cond):
    model = model_of(TextNetwork())
    with pytest.raises(UsageError, match="need tokens and mask"):
        Trainer(model, ArrayData(torch.zeros(8, 2), cond), DenoisingObjective(), TrainingOptions(batch_size=4))
    with pytest.raises(UsageError, match="need tokens and mask"):
        sample(model, DDIM(), 8, cond=cond, num_steps=3)
    assert model.network.seen == []


def test_conditions_of_another_length_are_refused():
    with pytest.raises(UsageError, match="cond of length 8: need one entry a sample, 9"):
        ArrayData(torch.zeros(9, 2), text())
    with pytest.raises(UsageError, match="cond of length 8: need one entry a sample, 9"):
        sample(model_of(TextNetwork()), DDIM(), 9, cond=text(), num_steps=3)


def test_a_nested_condition_reaches_the_network_with_its_sample(device):
    model = model_of(TextNetwork(), device)
    whole = sample(model, DDIM(), 8, cond=text(), num_steps=3).x
    model.network.seen.clear()
    parts = sample(model, DDIM(), 8, cond=text(), num_steps=3, batch_size=3).x
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert [len(cond["tokens"]) for cond in model.network.seen[::3]] == [3, 3, 2]
    assert torch.equal(model.network.seen[3]["tokens"].cpu(), text()["tokens"][3:6])


def test_training_hides_the_share_of_conditions_that_the_network_asks_for(device):
    """3,200 conditions of a share of 0.3: within 4.5 standard errors."""
    data = ArrayData(torch.zeros(64, 2), text(64))
    network = TextNetwork(cond_dropout=0.3)
    options = TrainingOptions(num_steps=50, batch_size=64, accumulate=2)
    trainer = Trainer(model_of(network, device), data, DenoisingObjective(), options)
    for _ in range(50):
        trainer.step()
    shown = torch.cat([cond["mask"].all(1) for cond in network.seen])
    assert len(shown) == 3200
    for cond in network.seen:
        assert (cond["mask"].all(1) == cond["mask"].any(1)).all()  # as a whole or not at all
        assert len(cond["mask"]) == 32
    assert abs((~shown).double().mean().item() - 0.3) < 4.5 * (0.3 * 0.7 / 3200) ** 0.5
    per_step = shown.reshape(50, 64)
    assert not torch.equal(per_step[0], per_step[1])
    assert data.cond["mask"].all()  # the data are as they were


def test_training_hides_nothing_of_a_network_without_a_share(device):
    network = TextNetwork()
    trainer = Trainer(
        model_of(network, device),
        ArrayData(torch.zeros(8, 2), text()),
        DenoisingObjective(),
        TrainingOptions(batch_size=8),
    )
    trainer.step()
    assert network.seen[0]["mask"].all()


def test_held_out_conditions_are_not_hidden(device):
    network = TextNetwork(cond_dropout=0.9)
    data = ArrayData(torch.zeros(8, 2), text())
    trainer = Trainer(model_of(network, device), data, DenoisingObjective(), TrainingOptions(batch_size=8))
    trainer.held_out_loss(data)
    assert network.seen[0]["mask"].all()
