"""Conditions of every kind, alone and together: what is taken, what is hidden, what is learned, what is guided."""

import itertools

import pytest
import torch

from samplers import DDIM, sample
from scoresde import (
    MLP,
    VPSDE,
    DenoisedWeighting,
    DenoisingObjective,
    EDMParametrization,
    NetworkScoreModel,
    TrainingOptions,
    UNet,
    UsageError,
    condition,
    fit,
    registry,
)
from scoresde.data import ArrayData
from scoresde.guidance import ClassifierFreeGuidance
from scoresde.networks import DiT, MPUNet
from scoresde.training import Trainer
from tests.training.trainers import Recorder, advance

KINDS = {
    "label": {"num_classes": 3},
    "vector": {"vector_channels": 5},
    "image": {"image_channels": 2},
    "tokens": {"context_channels": 4},
}
NETWORKS = {
    "mlp": (lambda **kinds: MLP(6, width=16, depth=2, **kinds), (6,), ("label", "vector")),
    "unet": (lambda **kinds: UNet(1, 8, attention_levels=(1,), **kinds), (1, 4, 4), tuple(KINDS)),
    "pyramid": (
        lambda **kinds: UNet(1, 8, noise_embedding="fourier", input_pyramid="residual", xavier=True, **kinds),
        (1, 4, 4),
        tuple(KINDS),
    ),
    "mpunet": (lambda **kinds: MPUNet(1, 16, head_channels=16, **kinds), (1, 4, 4), ("label", "vector", "image")),
    "dit": (lambda **kinds: DiT(1, width=16, depth=2, **kinds), (1, 4, 4), tuple(KINDS)),
}
CASES = [
    pytest.param(make, shape, kinds, id=f"{name}-{'+'.join(kinds)}")
    for name, (make, shape, taken) in NETWORKS.items()
    for kinds in [*((kind,) for kind in taken), taken]
]
each_case = pytest.mark.parametrize(("make", "shape", "kinds"), CASES)
NUM = 6


def cond_of(kinds, shape=(1, 4, 4), seed=0):
    """A condition of some kinds, its labels from 0 to 2; half of the tokens only pad."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        "label": torch.arange(NUM) % 3,
        "vector": torch.randn(NUM, 5, generator=generator),
        "image": torch.randn(NUM, 2, *shape[1:], generator=generator),
        "image_noise": torch.rand(NUM, generator=generator),
        "tokens": torch.randn(NUM, 4, 4, generator=generator),
        "mask": torch.arange(4) < torch.arange(1, NUM + 1)[:, None],
    }
    more = {"image": ("image_noise",), "tokens": ("mask",)}
    return {name: found[name] for kind in kinds for name in (kind, *more.get(kind, ()))}


def model_of(make, shape, kinds, dropout=0.0, moved=True):
    """A float64 model whose weights are all far from 0."""
    torch.manual_seed(0)
    arguments = {name: size for kind in kinds for name, size in KINDS[kind].items()}
    network = make(label_dropout=dropout, **arguments)
    if moved:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), shape).double().eval()


def states(shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM, *shape, dtype=torch.float64, generator=generator), torch.tensor(0.6).double()


@each_case
def test_every_part_is_seen_and_its_gradient_reaches_the_weights(make, shape, kinds):
    model = model_of(make, shape, kinds)
    x, t = states(shape)
    cond = cond_of(kinds, shape)
    model.check_cond(cond)
    whole = model.denoise(x, t, cond)
    other = cond_of(kinds, shape, seed=1)
    other["label"] = (torch.arange(NUM) + 1) % 3
    for part in cond.keys() - {"mask"}:
        changed = model.denoise(x, t, cond | {part: other[part]})
        assert (changed - whole).flatten(1).norm(dim=1).min() > 1e-7, part
    whole.square().sum().backward()
    weights = dict(model.network.conditioning.named_parameters())
    assert [name for name, p in weights.items() if p.grad is None or p.grad.abs().max() < 1e-12] == []


@each_case
def test_a_step_of_training_moves_the_weights_of_the_condition(make, shape, kinds, device):
    model = model_of(make, shape, kinds, 0.2, moved=False).float().to(device)
    with torch.no_grad():  # a last layer of zeros would pass no gradient on
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    data = ArrayData(torch.randn(NUM, *shape), cond_of(kinds, shape))
    before = {name: p.detach().clone() for name, p in model.network.conditioning.named_parameters()}
    advance(Trainer(model, data, DenoisingObjective(), TrainingOptions(batch_size=NUM, warmup_steps=0)), 1)
    after = dict(model.network.conditioning.named_parameters())
    assert [name for name, p in before.items() if torch.equal(p, after[name])] == []


@each_case
def test_hidden_samples_are_without_a_condition_and_others_keep_theirs(make, shape, kinds):
    model = model_of(make, shape, kinds, 0.2)
    x, t = states(shape)
    cond = cond_of(kinds, shape)
    hidden = torch.arange(NUM) % 2 == 0
    nothing = model.null_cond(cond, hidden)
    model.check_cond(nothing)
    found, given, none = (model.denoise(x, t, c) for c in (nothing, cond, None))
    assert (given - none).flatten(1).norm(dim=1).min() > 1e-6
    torch.testing.assert_close(found[hidden], none[hidden], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[~hidden], given[~hidden], rtol=1e-12, atol=1e-12)
    again = model.null_cond(nothing, ~hidden)
    torch.testing.assert_close(model.denoise(x, t, again), none, rtol=1e-12, atol=1e-12)


@each_case
def test_guidance_is_away_from_none(make, shape, kinds):
    model = model_of(make, shape, kinds, 0.2)
    x, t = states(shape)
    cond = cond_of(kinds, shape)
    given, none = model.denoise(x, t, cond), model.denoise(x, t)
    guided = ClassifierFreeGuidance(model, 3.0)
    torch.testing.assert_close(guided.denoise(x, t, cond), none + 3 * (given - none))
    assert sample(guided, DDIM(), NUM, num_steps=2, cond=cond).x.isfinite().all()


def test_one_part_can_be_left_out_or_hidden_by_itself():
    model = model_of(NETWORKS["unet"][0], (1, 4, 4), tuple(KINDS), 0.2)
    x, t = states((1, 4, 4))
    cond = cond_of(tuple(KINDS))
    everyone = torch.ones(NUM, dtype=torch.bool)
    more = {"image": "image_noise", "tokens": "mask"}
    for kind in KINDS:
        left = {name: part for name, part in cond.items() if name not in (kind, more.get(kind))}
        own = {name: part for name, part in cond.items() if name in (kind, more.get(kind))}
        model.check_cond(left)
        hidden = left | model.null_cond(own, everyone)
        expected = model.denoise(x, t, left)
        torch.testing.assert_close(model.denoise(x, t, hidden), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["unet", "pyramid", "dit"])
def test_the_values_of_padded_tokens_do_not_matter(name):
    make, shape, kinds = NETWORKS[name]
    model = model_of(make, shape, kinds)
    x, t = states(shape)
    cond = cond_of(kinds)
    other = cond["tokens"].masked_fill(~cond["mask"][..., None], 1e3)
    assert torch.equal(model.denoise(x, t, cond), model.denoise(x, t, cond | {"tokens": other}))


def test_the_noise_of_an_image_is_0_unless_it_is_given():
    for name in ("unet", "mpunet", "dit"):
        model = model_of(NETWORKS[name][0], (1, 4, 4), ("image",))
        x, t = states((1, 4, 4))
        cond = cond_of(("image",))
        clean = model.denoise(x, t, {"image": cond["image"]})
        assert torch.equal(clean, model.denoise(x, t, cond | {"image_noise": torch.zeros(NUM)}))
        assert torch.equal(clean, model.denoise(x, t, cond | {"image_noise": torch.full((NUM,), 1e-4)}))


def test_an_image_that_is_kept_is_never_hidden():
    torch.manual_seed(0)
    network = UNet(1, 8, num_classes=3, image_channels=2, label_dropout=0.1, keeps_image=True)
    cond = cond_of(("label", "image"))
    hidden = network.null_cond(cond, torch.ones(NUM, dtype=torch.bool))
    assert (hidden["label"] == 3).all()
    assert torch.equal(hidden["image"], cond["image"])
    assert torch.equal(hidden["image_noise"], cond["image_noise"])
    network.check_cond(cond["label"])  # of data, whose images an objective makes
    with pytest.raises(UsageError, match=r"need a dict of 'image' \(B, 2, \*sizes\)"):
        network(torch.zeros(NUM, 1, 4, 4), torch.zeros(NUM), cond["label"])
    with pytest.raises(UsageError, match=r"label_dropout=0\.1"):
        UNet(1, 8, image_channels=2, label_dropout=0.1, keeps_image=True)


def test_a_vector_alone_may_be_a_tensor():
    model = model_of(NETWORKS["mlp"][0], (6,), ("vector",), 0.2)
    x, t = states((6,))
    vector = cond_of(("vector",))["vector"]
    model.check_cond(vector)
    assert torch.equal(model.denoise(x, t, vector), model.denoise(x, t, {"vector": vector}))
    hidden = model.null_cond(vector, torch.arange(NUM) < 3)
    model.check_cond(hidden)
    torch.testing.assert_close(model.denoise(x, t, hidden)[:3], model.denoise(x, t)[:3], rtol=1e-12, atol=1e-12)


WRONG = {
    "no image": (("label", "image"), lambda c: {"label": c["label"]}, r"without 'image'; need a dict of 'image'"),
    "channels": (("image",), lambda c: {"image": c["image"][:, :1]}, r"'image' is .*\(6, 1, 4, 4\)\); need .*\(B, 2,"),
    "negative noise": (("image",), lambda c: c | {"image_noise": -c["image_noise"]}, "'image_noise' is a tensor"),
    "noise alone": (("label", "image"), lambda c: {"image_noise": c["image_noise"]}, r"need a dict of 'image'"),
    "size of a vector": (("vector",), lambda c: c["vector"][:, :2], r"\(6, 2\)\); need vectors \(B, 5\)$"),
    "vector of labels": (("vector",), lambda c: c["vector"][:, 0], r"\(6,\)\); need vectors"),
    "a bare tensor": (
        ("label", "vector"),
        lambda c: c["label"],
        r"\(int64, \(6,\)\); need a dict of 'vector' \(B, 5\)",
    ),
    "unknown": (("label", "vector"), lambda c: c | {"text": c["vector"]}, r"cond\['text'\]"),
    "label": (("label", "vector"), lambda c: c | {"label": c["label"] + 1}, "labels from 1 to 3; need"),
    "hidden": (("vector",), lambda c: c | {"vector_mask": torch.ones(6, dtype=torch.bool)}, r"cond\['vector_mask'\]"),
    "mask": (("tokens",), lambda c: c | {"mask": c["mask"].float()}, r"'mask' is a tensor \(float32, \(6, 4\)\)"),
}


@pytest.mark.parametrize(("kinds", "change", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named_in_one_line(kinds, change, message):
    model = model_of(NETWORKS["unet"][0], (1, 4, 4), kinds)
    with pytest.raises(UsageError, match=message) as error:
        model.check_cond(change(cond_of(kinds)))
    assert "\n" not in str(error.value)


def test_an_image_of_other_sizes_is_refused():
    for name in ("unet", "mpunet", "dit"):
        model = model_of(NETWORKS[name][0], (1, 4, 4), ("image",))
        x, t = states((1, 4, 4))
        with pytest.raises(UsageError, match=r"cond\['image'\] of sizes \(8, 8\): need those of the samples, \(4, 4\)"):
            model.denoise(x, t, {"image": torch.zeros(NUM, 2, 8, 8)})


def test_files_describe_the_kinds_and_older_ones_have_none():
    for make, _, kinds in NETWORKS.values():
        arguments = {name: size for kind in kinds for name, size in KINDS[kind].items()}
        described = registry.describe(make(**arguments))
        assert {name: described[name] for name in arguments} == arguments
        plain = registry.describe(make())
        older = {key: value for key, value in plain.items() if key not in {"keeps_image", *arguments} - {"num_classes"}}
        assert registry.describe(registry.construct(older, torch.nn.Module, "network")) == plain


def test_images_of_conditions_are_mirrored_with_the_samples(device):
    images = torch.randn(16, 1, 4, 4)
    model = NetworkScoreModel(UNet(1, 4, image_channels=1), VPSDE(), EDMParametrization(1.0), (1, 4, 4)).to(device)
    recorder = Recorder()
    data = ArrayData(images, {"image": images})
    advance(Trainer(model, data, recorder, TrainingOptions(batch_size=16, flip=True)), 2)
    for batch in recorder.batches:
        assert torch.equal(batch.cond["image"], batch.raw)


def test_the_mean_given_a_vector_is_learned():
    """x = (v_1 + v_2, v_1 - v_2)/2 + 0.3 z: at the largest noise D is E[x | v], and without the vector E[x] = 0."""
    torch.manual_seed(0)
    v = torch.randn(4096, 2)
    mean = torch.stack([v.sum(1), v[:, 0] - v[:, 1]], 1) / 2
    network = MLP(2, width=64, depth=2, vector_channels=2, label_dropout=0.2)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.8), (2,))
    options = TrainingOptions(num_steps=500, batch_size=256, lr=3e-3)
    objective = DenoisingObjective(weighting=DenoisedWeighting())  # the default one hardly counts large noise
    trained = fit(model, mean + 0.3 * torch.randn(4096, 2), v, objective=objective, options=options, progress=False)
    x, t = torch.randn(1024, 2), torch.tensor(1.0)
    with torch.no_grad():
        given, none = trained.denoise(x, t, v[:1024]), trained.denoise(x, t)
    assert (given - mean[:1024]).square().mean().sqrt() < 0.1  # E|mean|^2 = 0.5 an entry
    assert none.square().mean().sqrt() < 0.1


def test_conditions_of_all_kinds_are_joined_and_taken():
    cond = cond_of(tuple(KINDS))
    halves = [condition.take(cond, part) for part in (slice(0, 2), slice(2, None))]
    again = condition.join(halves)
    assert all(torch.equal(a, b) for (_, a), (_, b) in itertools.zip_longest(*map(condition.parts, (cond, again))))


@pytest.mark.parametrize("cls", ["UNet", "DiT"])
def test_tokens_look_at_each_other_first_and_padding_still_says_nothing(cls):
    torch.manual_seed(0)
    options = {"context_channels": 6, "context_depth": 2, "label_dropout": 0.1}
    network = UNet(2, channels=8, **options) if cls == "UNet" else DiT(2, width=16, depth=1, num_heads=2, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, c_noise, tokens = torch.randn(2, 2, 8, 8), torch.zeros(2), torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    output = network(x, c_noise, {"tokens": tokens, "mask": mask})
    changed = tokens.clone()
    changed[0, 2:] = 99
    torch.testing.assert_close(network(x, c_noise, {"tokens": changed, "mask": mask}), output)
    hidden = network.null_cond({"tokens": tokens, "mask": mask}, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(network(x, c_noise, hidden), network(x, c_noise), rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # the learned token sees the others: what it says of the whole reaches the embedding
        seen = network.conditioning.tokens(c_noise, {"tokens": tokens, "mask": mask}).values[:, 0]
        other = network.conditioning.tokens(c_noise, {"tokens": 2 * tokens, "mask": mask}).values[:, 0]
    assert not torch.allclose(seen, other)


def test_blocks_of_a_context_need_one():
    with pytest.raises(UsageError, match=r"context_depth=1: need 0 blocks or more, and 0 for a network without tokens"):
        UNet(2, channels=8, context_depth=1)
