"""The average of the weights: its decay, what it lends to a model, and what it gives back."""

import math

import pytest
import torch
from torch import nn

from scoresde import TrainingOptions
from scoresde.objective import DenoisingObjective
from scoresde.training import Average, Trainer
from tests.training.trainers import advance, gaussian_data, make_trainer, normed_model


def followed(trainer, num_steps):
    """The weights before the first step and after each, float64, by name."""
    courses = {name: [p.detach().double().clone()] for name, p in trainer.model.named_parameters()}
    for _ in range(num_steps):
        trainer.step()
        for name, p in trainer.model.named_parameters():
            courses[name].append(p.detach().double().clone())
    return courses


def test_averaged_weights_are_those_of_a_plain_loop(device):
    trainer = make_trainer(device, lr=0.05, ema_decay=0.3)  # the ramp 1/10, 2/11, 3/12, .. ends at step 4
    courses = followed(trainer, 8)
    for name, average in trainer.average.tensors.items():
        expected = courses[name][0]
        for n, weights in enumerate(courses[name][1:]):
            decay = min(0.3, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)
    moved = trainer.model.network.last.weight - trainer.average.tensors["network.last.weight"]
    assert moved.abs().max() > 1e-3  # or the comparison says nothing


def test_while_the_decay_grows_the_average_is_a_polynomial_in_the_age_of_the_weights(device):
    """prod (1 + j) / (10 + j) over the first n steps is 1 / C(n + 9, 9): that share of the first weights is left.

    The weights after step k have the share 9 / (10 + k) prod_{j > k} = 9 / (10 + k) C(k + 10, 9) / C(n + 9, 9).
    """
    n = 12
    shares = [1 / math.comb(n + 9, 9)]
    shares += [9 / (10 + k) * math.comb(k + 10, 9) / math.comb(n + 9, 9) for k in range(n)]
    assert sum(shares) == pytest.approx(1, rel=1e-12)
    trainer = make_trainer(device, lr=0.05, ema_decay=0.999)
    for name, course in followed(trainer, n).items():
        expected = sum(share * weights for share, weights in zip(shares, course, strict=True))
        torch.testing.assert_close(trainer.average.tensors[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_average_carries_no_history(device):
    trainer = advance(make_trainer(device), 3)
    for tensor in trainer.average.tensors.values():
        assert tensor.is_leaf
        assert tensor.grad_fn is None
        assert not tensor.requires_grad


def test_the_average_has_the_buffers_of_the_model(device):
    model = normed_model(device)
    trainer = Trainer(model, gaussian_data(), DenoisingObjective(), TrainingOptions(num_steps=5))
    advance(trainer, 5)
    tensors = trainer.average.tensors
    assert tensors["network.norm.num_batches_tracked"] == 5
    assert model.network.norm.running_mean.abs().max() > 0
    for name, buffer in model.named_buffers():
        assert torch.equal(tensors[name], buffer)
        assert tensors[name] is not buffer


def modes(model):
    return [part.training for part in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_has_the_averaged_weights_while_they_are_applied_and_its_own_afterwards(device, fails):
    model = normed_model(device)
    trainer = Trainer(model, gaussian_data(), DenoisingObjective(), TrainingOptions(num_steps=5, batch_size=32, lr=0.1))
    advance(trainer, 3)
    model.network.last.eval()  # a part in a mode of its own
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averaged = {name: tensor.clone() for name, tensor in trainer.average.tensors.items()}
    own_modes = modes(model)
    assert set(own_modes) == {True, False}
    assert not torch.equal(own["network.last.weight"], averaged["network.last.weight"])
    try:
        with trainer.average.applied(model):
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, averaged[name]), name
            assert not any(modes(model))
            model.network.norm.running_mean.add_(1)  # whatever is done to a buffer is undone
            if fails:
                raise InterruptedError
    except InterruptedError:
        assert fails
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    for name, tensor in trainer.average.tensors.items():
        assert torch.equal(tensor, averaged[name]), name
    assert modes(model) == own_modes


def test_the_weights_stay_the_tensors_that_the_optimiser_holds(device):
    """Looks at the averaged model between steps change nothing in training."""
    plain, watched = make_trainer(device), make_trainer(device)
    for _ in range(4):
        plain.step()
        watched.step()
        before = list(watched.model.parameters())
        with watched.average.applied(watched.model), torch.no_grad():
            assert watched.model.denoise(torch.ones(3, 2, device=device), 0.5).isfinite().all()
        assert all(one is other for one, other in zip(before, watched.model.parameters(), strict=True))
    for name, value in plain.state().items():
        assert torch.equal(value, watched.state()[name]), name


class Tied(nn.Module):
    """Two layers with the same weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.last = nn.Linear(2, 2, bias=False)
        self.last.weight = self.first.weight


def test_tied_weights_are_averaged_once_under_both_names():
    model = Tied()
    average = Average(model)
    start = model.first.weight.detach().clone()
    with torch.no_grad():
        model.first.weight.add_(1)
    average.update(0.75)
    assert average.tensors.keys() == model.state_dict().keys()
    for tensor in average.tensors.values():
        torch.testing.assert_close(tensor, start + 0.25)
    with average.applied(model):
        torch.testing.assert_close(model.last.weight, start + 0.25)
    torch.testing.assert_close(model.last.weight, start + 1)
