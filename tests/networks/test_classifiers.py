"""Networks that classify: every parameter and input matters, at any size, and each sample is judged alone."""

import json

import pytest
import torch

from scoresde import ClassifierNetwork, MLPClassifier, UNetClassifier, UsageError, registry
from tests.networks.test_networks import inputs, perturbed

NETWORKS = {
    "mlp": (MLPClassifier, {"dim": 3, "num_classes": 5, "width": 16, "depth": 2}, (3,)),
    "unet": (UNetClassifier, {"channels_in": 1, "num_classes": 4, "channels": 16}, (1, 8, 8)),
    "deep unet": (
        UNetClassifier,
        {"channels_in": 3, "num_classes": 2, "channels": 12, "multipliers": (1, 2, 6), "num_blocks": 2},
        (3, 9, 6),
    ),
}
every_network = pytest.mark.parametrize(("kind", "arguments", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


@every_network
def test_all_classes_are_equally_likely_at_first(kind, arguments, shape, device):
    x, c_noise = inputs(shape, device)
    logits = kind(**arguments).to(device)(x.float(), c_noise.float())
    assert torch.equal(logits, torch.zeros(4, arguments["num_classes"], device=device))


@every_network
def test_the_gradient_reaches_every_parameter(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    network(*inputs(shape, device)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6] == []


@every_network
def test_logits_depend_on_every_entry_and_on_the_noise(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    x, c_noise = (part.requires_grad_() for part in inputs(shape, device))
    for part in torch.autograd.grad(network(x, c_noise)[:, 0].sum(), (x, c_noise)):
        assert part.abs().min() > 1e-9


@every_network
def test_samples_do_not_see_one_another(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    x, c_noise = inputs(shape, device)
    together = network(x, c_noise)
    for i in range(4):
        torch.testing.assert_close(network(x[i : i + 1], c_noise[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-10)


@every_network
def test_its_description_makes_it_again(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    described = json.loads(json.dumps(registry.describe(network)))
    again = registry.construct(described, ClassifierNetwork, "network").double().to(device)
    again.load_state_dict(network.state_dict())
    x, c_noise = inputs(shape, device)
    assert torch.equal(again(x, c_noise), network(x, c_noise))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 4)])
def test_images_of_any_size_are_classified(size, device):
    network = perturbed(UNetClassifier(2, 3, channels=8, multipliers=(1, 1, 2)), device)
    logits = network(*inputs((2, *size), device))
    assert (logits[0] - logits[1]).abs().min() > 1e-6


@pytest.mark.parametrize("num_classes", [1, 0, 2.0])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(UsageError, match=rf"num_classes={num_classes}: .*at least two classes"):
        MLPClassifier(2, num_classes)
    with pytest.raises(UsageError, match=rf"num_classes={num_classes}: .*at least two classes"):
        UNetClassifier(1, num_classes)


def test_mistakes_name_the_class():
    with pytest.raises(UsageError, match="channels=0 of UNetClassifier"):
        UNetClassifier(1, 2, channels=0)
    with pytest.raises(UsageError, match="depth=0 of MLPClassifier"):
        MLPClassifier(1, 2, depth=0)
