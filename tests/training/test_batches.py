"""Where batches come from: permutations of an array, or what a user defines."""

import gc
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from scoresde import VPSDE, NetworkScoreModel, NoiseParametrization, TrainingOptions, UNet, UsageError
from scoresde.data import ArrayData, ReadOptions, load
from scoresde.objective import DenoisingObjective
from scoresde.training import ArrayBatches, Batches, Prefetched, Trainer
from scoresde.training.batches import batches_of
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


def from_file(folder, count=40, seed=0):
    """Labelled images of bytes in memory, and the same in a file."""
    generator = torch.Generator().manual_seed(seed)
    np.save(folder / "x.npy", torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8).numpy())
    np.save(folder / "y.npy", np.arange(count) % 3)
    options = ReadOptions(labels_path=str(folder / "y.npy"))
    return [load(path=str(folder / "x.npy"), options=replace(options, from_disk=d)) for d in (False, True)]


def image_trainer(data, device, num_steps=7):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(1, channels=2, num_classes=3, label_dropout=0.2)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(data.rms()), (1, 4, 4), data.codec).to(device)
    options = TrainingOptions(num_steps=num_steps, batch_size=16, flip=True, dequantize=True, warmup_steps=2)
    return Trainer(model, data, DenoisingObjective(), options, seed=3)


def test_training_from_a_file_ends_with_the_same_bytes_as_in_memory(tmp_path, device):
    found = []
    for data in from_file(tmp_path):
        train, held_out = data.split(0.25)
        trainer = advance(image_trainer(train, device), 7)
        found.append((trainer.state(), trainer.held_out_loss(held_out)))
    (memory, memory_loss), (file, file_loss) = found
    assert_same_state(memory, file)
    assert memory_loss == file_loss


def test_a_run_from_a_file_continues_as_if_never_stopped(tmp_path, device):
    data = from_file(tmp_path)[1]
    whole = advance(image_trainer(data, device), 7)
    part = advance(image_trainer(data, device), 3)
    resumed = image_trainer(data, device)
    resumed.load_state(3, part.state())
    assert_same_state(advance(resumed, 4).state(), whole.state())
    part.load_state(3, advance(image_trainer(data, device), 3).state())  # back, where it had read ahead
    assert_same_state(advance(part, 4).state(), whole.state())


def test_batches_that_are_read_ahead_are_the_same(tmp_path, device):
    memory, file = from_file(tmp_path)
    expected, found = batches_of(memory, 16, 5), batches_of(file, 16, 5)
    assert isinstance(found, Prefetched)
    for step in (0, 1, 2, 3, 7, 8, 3, 4, 100):
        for share in (slice(0, 16), slice(4, 8), slice(4, 8)):
            for one, other in zip(found.batch(step, share, device), expected.batch(step, share, device), strict=True):
                assert one.device.type == device.type
                assert torch.equal(one, other)


class Failing(Stream):
    """Has no batch for step 4."""

    def batch(self, step, share, device):
        if step == 4:
            raise UsageError("the disk is gone")
        return super().batch(step, share, device)


def test_an_error_of_the_thread_is_raised_when_its_batch_is_asked_for(device):
    options = TrainingOptions(num_steps=9, batch_size=8)
    trainer = Trainer(make_model(device, num_classes=4), Prefetched(Failing(8)), DenoisingObjective(), options)
    advance(trainer, 4)
    with pytest.raises(UsageError, match="the disk is gone"):
        trainer.step()


def test_the_next_batches_are_read_in_one_thread_that_ends_with_the_trainer(device):
    reads = []

    class Noted(Stream):
        def batch(self, step, share, device):
            reads.append((step, threading.current_thread()))
            return super().batch(step, share, device)

    options = TrainingOptions(num_steps=9, batch_size=8)
    trainer = Trainer(make_model(device, num_classes=4), Prefetched(Noted(8)), DenoisingObjective(), options)
    advance(trainer, 5)
    threads = {thread for _, thread in reads}
    assert len(threads) == 1
    assert threads.isdisjoint({threading.main_thread()})
    del trainer
    gc.collect()
    threads.pop().join(timeout=10)
    assert [step for step, _ in reads] == list(range(7))  # two ahead, each once


def test_a_file_that_is_cut_short_ends_training_with_its_name(tmp_path, device):
    trainer = image_trainer(from_file(tmp_path, count=4000)[1], device, num_steps=500)
    advance(trainer, 2)
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(UsageError, match=r"x.npy': has become shorter"):
        advance(trainer, 400)
