"""The contrastive loss is the symmetric cross-entropy, and what is trained by it finds captions and samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scoresde import NetworkScoreModel, TrainingOptions, fit
from scoresde.condition import take
from scoresde.contrastive import ContrastiveObjective
from scoresde.metrics.retrieval import retrieval_at_1
from scoresde.text import OwnTextEncoder, Vocabulary
from tests.text import captioned


def losses_of(model, raw, which):
    return ContrastiveObjective()(model, raw, take(captioned.table(model), which))


def test_the_loss_is_the_symmetric_cross_entropy():
    """Of captions that all differ: torch's own cross-entropy of the similarities, in both directions."""
    model = captioned.model()
    raw, which = captioned.images(400)
    first = torch.tensor([int((which == number).nonzero()[0]) for number in range(8)])
    raw, which = raw[first], which[first]
    embedded = model.embed(raw, take(captioned.table(model), which))
    logits = embedded.scale * embedded.images @ embedded.texts.mT
    right = torch.arange(8)
    expected = sum(F.cross_entropy(table, right, reduction="none") for table in (logits, logits.mT)) / 2
    torch.testing.assert_close(losses_of(model, raw, which), expected, rtol=1e-5, atol=1e-6)


def test_a_sample_with_the_same_caption_is_no_mistake():
    """Each sample's loss is as if those with its caption were not in the batch."""
    model = captioned.model()
    raw, _ = captioned.images(4)
    which = torch.tensor([0, 1, 0, 2])
    losses = losses_of(model, raw, which)
    for place, others in {0: [0, 1, 3], 2: [2, 1, 3]}.items():
        torch.testing.assert_close(losses[place], losses_of(model, raw[others], which[others])[0])
    assert torch.equal(losses_of(model, raw, torch.zeros(4, dtype=torch.long)), torch.zeros(4))


def test_equal_captions_may_be_padded_with_anything():
    model = captioned.model()
    raw, which = captioned.images(6)
    cond = take(captioned.table(model), which)
    other = {"ids": cond["ids"].masked_fill(~cond["mask"], 3), "mask": cond["mask"]}
    torch.testing.assert_close(ContrastiveObjective()(model, raw, cond), ContrastiveObjective()(model, raw, other))


def test_training_finds_captions_and_samples():
    """Held-out pairs among the 18 captions: by chance 1 in 18. The scale of the similarities is learned."""
    model = captioned.model()
    raw, which = captioned.images(1200)
    held, held_which = captioned.images(300, seed=1)
    cond = take(captioned.table(model), held_which)
    before = retrieval_at_1(model, held, **cond)
    assert before.group == 18
    assert max(before.caption, before.sample) < 0.3
    options = TrainingOptions(num_steps=250, batch_size=64, lr=3e-3, warmup_steps=20, ema_decay=0.98)
    trained = fit(
        model, raw, take(captioned.table(model), which), objective=ContrastiveObjective(), options=options,
        progress=False,
    )  # fmt: skip
    after = retrieval_at_1(trained, held, **cond)
    assert min(after.caption, after.sample) > 0.9
    assert trained.network.log_scale.item() != pytest.approx(math.log(1 / 0.07), abs=1e-3)
    states = OwnTextEncoder(trained, "of a test").encode(captioned.TEXTS)
    assert states["mask"].sum(1).tolist() == [8] * 18
    assert Vocabulary(trained.text.words) == Vocabulary.of(captioned.TEXTS)


def test_the_objective_is_for_text_encoders_alone():
    assert ContrastiveObjective.trains is type(captioned.model())
    assert not issubclass(ContrastiveObjective.trains, NetworkScoreModel)
