"""Options of speed: the same training, to rounding, and one line where the machine or the model does not suit them."""

from __future__ import annotations

import pytest
import torch

from scoresde import MLP, VPSDE, NetworkScoreModel, NoiseParametrization, TrainingOptions, UNet, UsageError
from scoresde.data import ArrayData
from scoresde.objective import DenoisingObjective, Objective
from scoresde.training import Trainer, World
from scoresde.training.speed import fast_products, prepared
from tests.training.trainers import (
    advance,
    assert_close_state,
    assert_same_state,
    gaussian_data,
    make_model,
    make_trainer,
)

# `torch.compile` and fused steps sum in another order: float32 rounding, which some steps of Adam enlarge
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
COMPILED = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.compile itself


def image_trainer(device, **options):
    """A trainer of a small U-Net on images of 2 channels, 6x4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(2, channels=8)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (2, 8, 4)).to(device)
    data = ArrayData(torch.randn(32, 2, 8, 4, generator=torch.Generator().manual_seed(0)))
    options = TrainingOptions(num_steps=8, batch_size=8, lr=1e-3, warmup_steps=2, **options)
    return Trainer(model, data, DenoisingObjective(), options)


@pytest.mark.slow
@COMPILED
def test_a_compiled_network_is_trained_as_it_is(device):
    """The MLP ends with the same weights, under the same names; parts of a batch and labels too."""
    options = {"num_steps": 8, "accumulate": 2, "ema_lengths": (0.1,)}
    plain, compiled = make_trainer(device, **options), make_trainer(device, **options, compile=True)
    assert_close_state(advance(compiled, 8).state(), advance(plain, 8).state(), **ROUNDING)
    held_out = gaussian_data(16, 1)
    assert compiled.held_out_loss(held_out) == pytest.approx(plain.held_out_loss(held_out), rel=1e-4)
    assert isinstance(compiled.model.network, MLP)


@pytest.mark.slow
@COMPILED
def test_a_compiled_training_goes_on_to_the_bit(device):
    whole = advance(make_trainer(device, compile=True), 5)
    first = {name: value.clone() for name, value in advance(make_trainer(device, compile=True), 2).state().items()}
    continued = make_trainer(device, compile=True)
    continued.load_state(2, first)
    assert_same_state(advance(continued, 3).state(), whole.state())


class Refused(Objective):
    """Fails as `torch.compile` does where there is no compiler."""

    def draw(self, model, batch, noise):
        return DenoisingObjective().draw(model, batch, noise)

    def at(self, model, batch, draws, averaged=None):
        from torch._dynamo.exc import InternalTorchDynamoError

        raise InternalTorchDynamoError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")


@COMPILED
def test_a_compiler_that_is_missing_is_named(device):
    message = (
        rf"training\.compile=True: torch cannot compile .* for {device.type} here \(InvalidCxxCompiler: No working "
    )
    with pytest.raises(UsageError, match=message + r".*\); install a compiler .* or set it to False$"):
        make_trainer(device, objective=Refused(), compile=True).step()
    with pytest.raises(RuntimeError, match="InvalidCxxCompiler"):  # not by this option
        make_trainer(device, objective=Refused()).step()


class Twice(Refused):
    """A loss with the gradient of the network, through which torch cannot differentiate once it is compiled."""

    def at(self, model, batch, draws, averaged=None):
        x = batch.raw.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.noise(x, 0.5).sum(), x, create_graph=True)
        return gradient.square().sum(1)


@pytest.mark.slow
@COMPILED
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch.compile as well
def test_a_loss_that_cannot_be_compiled_is_named(device):
    make_trainer(device, objective=Twice()).step()
    message = r"training\.compile=True: .*(double backward|create_graph=False).*\); .* set it to False"
    with pytest.raises(UsageError, match=message):
        make_trainer(device, objective=Twice(), compile=True).step()


def test_sharded_weights_are_not_compiled(device):
    options = TrainingOptions(compile=True, shard=True)
    with pytest.raises(UsageError, match=r"training\.compile=True, training\.shard=True: .* one of the two to False"):
        prepared(make_model(device), options, World(0, 2))


def test_channels_last_is_the_same_training(device):
    plain, last = image_trainer(device), image_trainer(device, channels_last=True)
    weight = next(p for p in last.model.network.parameters() if p.dim() == 4 and p.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert_close_state(advance(last, 4).state(), advance(plain, 4).state(), **ROUNDING)


def test_channels_last_goes_on_to_the_bit(device):
    """From a state that was written and read, which has no layout."""
    whole = advance(image_trainer(device, channels_last=True), 5)
    first = advance(image_trainer(device, channels_last=True), 2).state()
    continued = image_trainer(device, channels_last=True)
    continued.load_state(2, {name: value.clone(memory_format=torch.contiguous_format) for name, value in first.items()})
    assert_same_state(advance(continued, 3).state(), whole.state())


def test_channels_last_of_vectors_is_named(device):
    with pytest.raises(
        UsageError, match=r"training\.channels_last=True: is a layout of images, .* shape \(2,\); set it"
    ):
        make_trainer(device, channels_last=True)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_products_are_in_tf32_during_a_step_on_cuda(name, asked):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    assert before[0] is False
    with fast_products(TrainingOptions(tf32=asked), torch.device(name)):
        changed = asked and name == "cuda"
        assert (matmul.allow_tf32, cudnn.allow_tf32) == ((True, True) if changed else before)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_tf32_changes_nothing_on_a_cpu():
    cpu = torch.device("cpu")
    assert_same_state(advance(make_trainer(cpu, tf32=True), 3).state(), advance(make_trainer(cpu), 3).state())


def test_a_graph_needs_a_compiled_network_on_a_gpu(device):
    """Whether it is given alone, or with `compile` on a CPU."""
    options = [{"cuda_graph": True}]
    options += [{"cuda_graph": True, "compile": True}] if device.type == "cpu" else []
    for given in options:
        with pytest.raises(UsageError, match=r"training\.cuda_graph=True: needs training\.compile=True and a GPU"):
            make_trainer(device, **given)


@pytest.mark.gpu
@COMPILED
def test_a_recorded_network_is_trained_as_it_is(device):
    plain = make_trainer(device)
    recorded = make_trainer(device, compile=True, cuda_graph=True)
    assert_close_state(advance(recorded, 8).state(), advance(plain, 8).state(), **ROUNDING)
