"""Where batches come from: permutations of an array, or what a user defines."""

import pytest
import torch

from scoresde import TrainingOptions, UsageError
from scoresde.data import ArrayData
from scoresde.objective import DenoisingObjective
from scoresde.training import ArrayBatches, Batches, Trainer
from tests.training.trainers import Recorder, Stream, advance, assert_same_state, make_model, make_trainer


def numbered(count):
    return ArrayData(torch.arange(float(count))[:, None].repeat(1, 2))


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(device):
    recorder = Recorder()
    advance(make_trainer(device, data=numbered(12), objective=recorder, batch_size=4), 6)
    first, second = torch.cat(recorder.rows[:3]), torch.cat(recorder.rows[3:])
    assert torch.equal(first.sort().values, torch.arange(12.0))
    assert torch.equal(second.sort().values, torch.arange(12.0))
    assert not torch.equal(first, second)


def test_a_batch_that_does_not_divide_the_data_repeats_nothing_within_an_epoch(device):
    recorder = Recorder()
    advance(make_trainer(device, data=numbered(11), objective=recorder, batch_size=4), 40)
    assert {len(batch) for batch in recorder.rows} == {4}
    for epoch in range(20):
        assert len(torch.cat(recorder.rows[2 * epoch : 2 * epoch + 2]).unique()) == 8
    assert len(torch.cat(recorder.rows).unique()) == 11  # who is left out changes


def test_a_batch_larger_than_the_data_holds_everyone_about_equally_often(device):
    recorder = Recorder()
    advance(make_trainer(device, data=numbered(3), objective=recorder, batch_size=8), 2)
    for batch in recorder.rows:
        assert sorted(batch.unique(return_counts=True)[1].tolist()) == [2, 3, 3]


def test_a_batch_is_a_function_of_its_step_and_shares_are_parts_of_it(device):
    data = ArrayData(numbered(20).values, {"label": torch.arange(20), "mask": torch.arange(20) % 2 == 0})
    batches = ArrayBatches(data, 6, seed=3)
    whole = [batches.batch(step, slice(0, 6), device) for step in range(9)]
    again = ArrayBatches(data, 6, seed=3)
    for step in (8, 0, 4, 3):  # in any order
        for part in (slice(0, 2), slice(2, 6)):
            raw, cond = again.batch(step, part, device)
            assert torch.equal(raw, whole[step].raw[part])
            assert torch.equal(raw[:, 0].long(), cond["label"])  # conditions stay with their sample
            assert torch.equal(cond["mask"], whole[step].cond["mask"][part])
    other = ArrayBatches(data, 6, seed=4).batch(0, slice(0, 6), device)
    assert not torch.equal(other.raw, whole[0].raw)


def stream_trainer(device, num_steps=120, **options):
    options = TrainingOptions(num_steps=num_steps, batch_size=64, lr=1e-2, warmup_steps=10, **options)
    model = make_model(device, num_classes=4, label_dropout=0.2)
    return Trainer(model, Stream(64), DenoisingObjective(), options)


def test_batches_that_a_user_defines_train(device):
    trainer = stream_trainer(device)
    first = advance(trainer, 10).pop_metrics()["loss"]
    last = advance(trainer, 110).pop_metrics()["loss"]
    assert last < 0.6 * first
    assert trainer.batches.asked == [(step, slice(0, 64)) for step in range(120)]


def test_a_run_on_batches_that_a_user_defines_continues_as_if_never_stopped(device):
    whole = advance(stream_trainer(device), 6)
    part = advance(stream_trainer(device), 4)
    resumed = stream_trainer(device)
    resumed.load_state(4, part.state())
    assert_same_state(advance(resumed, 2).state(), whole.state())
    assert resumed.batches.asked == [(4, slice(0, 64)), (5, slice(0, 64))]


def test_batches_are_checked_before_the_first_step(device):
    objective = DenoisingObjective()
    with pytest.raises(UsageError, match=r"cond: labels from 0 to 3; need labels 0\.\.2"):
        Trainer(make_model(device, num_classes=3), Stream(8), objective, TrainingOptions(batch_size=8))
    with pytest.raises(UsageError, match="data are floats, not whole numbers"):
        Trainer(make_model(device, num_classes=4), Stream(8), objective, TrainingOptions(batch_size=8, dequantize=True))
    batches = Stream(8)
    batches.raw_shape = (3,)
    with pytest.raises(UsageError, match=r"data of shape \(3,\): Scaling encodes it as \(3,\), and the model takes"):
        Trainer(make_model(device, num_classes=4), batches, objective, TrainingOptions(batch_size=8))
    assert batches.asked == []


def test_batches_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Batches()
