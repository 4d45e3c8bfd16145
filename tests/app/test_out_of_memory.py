"""Memory that does not suffice, or no compiler: one line with what to change, and nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from scoresde import checkpoint
from scoresde.app import average as average_module
from scoresde.app import train as train_module
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.models.network import NetworkScoreModel
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer
from tests.runs import LOGGED, ROOT, SAMPLE, assert_same_run, contents, train_logged

TOY = [*SAMPLE, "--workdir=runs/toy", "--sampler=heun"]


def assert_refused(capsys, arguments, message):
    """Status 2, and one line after that of the progress."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 1, err
    assert "Traceback" not in err
    assert re.search(message, err.splitlines()[-1]), err


def allocate(*_, **__):
    return torch.empty(2**60, dtype=torch.uint8)


def cuda_error(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..")


def host_error(*_, **__):
    raise MemoryError


@pytest.mark.parametrize("fail", [allocate, cuda_error])
def test_a_run_goes_on_with_more_parts_of_a_batch(whole, tmp_path, monkeypatch, capsys, fail):
    """It fails at step 16, and goes on from step 14 as it is told to; the metrics until then stay."""
    losses = DenoisingObjective.at
    step = Trainer.step

    def large(self, model, batch, draws, averaged=None):
        return losses(self, model, batch, draws) if len(batch.raw) < 32 else fail()

    def late(trainer):
        with monkeypatch.context() as patch:
            if trainer.step_number >= 16:
                patch.setattr(DenoisingObjective, "at", large)
            step(trainer)

    monkeypatch.setattr(Trainer, "step", late)
    message = r"out of memory \(tried to allocate .*\) with training\.batch_size=32 and training\.accumulate=1; set "
    assert_refused(capsys, [*LOGGED, f"--workdir={tmp_path}"], message + r"config\.training\.accumulate=2")
    run = RunFolder(tmp_path)
    assert run.newest_checkpoint().step == 14
    kept = contents(run.checkpoints)
    metrics = run.metrics.read_bytes()
    assert metrics.splitlines() == (whole / "metrics.jsonl").read_bytes().splitlines()[: len(metrics.splitlines())]
    assert train_logged(tmp_path, "--config.training.accumulate=2") == 0
    assert "from step 14" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in kept.items() if path.exists())
    assert run.newest_checkpoint().step == 20


def test_a_run_without_memory_for_a_moment_goes_on_by_the_same_command(whole, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def once(trainer):
        if trainer.step_number == 16:
            cuda_error()
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", once)
        assert train_logged(tmp_path) == 2
    assert train_logged(tmp_path) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("fail", [allocate, cuda_error, host_error])
def test_commands_name_how_many_samples_are_drawn_at_a_time(work, monkeypatch, capsys, fail):
    with monkeypatch.context() as patch:
        patch.setattr(NetworkScoreModel, "denoise_at", fail)
        patch.setattr(NetworkScoreModel, "on_grid", fail)
        for command in (TOY, ["--mode=evaluate", "--metric=nll", "--workdir=runs/toy", "--device=cpu"]):
            assert_refused(capsys, command, r"^error: out of memory.*; try fewer .* --config\.sampling\.batch_size=16$")
        assert_refused(capsys, [*TOY, "--config.sampling.batch_size=6"], r"--config\.sampling\.batch_size=3$")
        assert_refused(capsys, [*TOY, "--config.sampling.batch_size", "1"], r"; try a larger --device$")
    assert main(TOY) == 0


def test_other_places_without_memory(tmp_path, monkeypatch, capsys):
    """The samples on the way of a training, and the sum of averages."""
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "sample", cuda_error)
        message = r"try smaller data or a smaller --config\.network, or fewer .* --config\.sampling\.batch_size=16$"
        assert_refused(capsys, [*LOGGED, f"--workdir={tmp_path}"], message)
        patch.setattr(average_module, "reconstruct", host_error)
        assert train_logged(tmp_path / "new", "--config.training.ema_lengths=(0.05,)") == 2
        (tmp_path / "snapshots").mkdir()
        checkpoint.save(RunFolder(tmp_path).snapshot_path(5), 5, {"models": {"score": {}}}, {})
        arguments = ["--mode=average", f"--workdir={tmp_path}", "--length=0.07"]
        assert_refused(capsys, arguments, r"out of memory; close other programs, or use another machine$")
    assert train_logged(tmp_path) == 0


def test_a_real_limit_on_memory_is_named(tmp_path):
    """The process may have 64 MB more than it has once the model is built."""
    program = f"""
import resource, sys
from scoresde.app import training_run as module
from scoresde.app.cli import main
build_run = module.build_run

def limited(*arguments):
    run = build_run(*arguments)
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, resource.RLIM_INFINITY))
    return run

module.build_run = limited
sys.exit(main({[*LOGGED, f"--workdir={tmp_path / 'run'}", "--device=cpu", "--config.training.batch_size=131072"]!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: training: out of memory (tried to allocate "), last
    assert "config.training.accumulate=2, for the same gradient from 65536 samples" in last
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.compile itself
def test_a_network_that_cannot_be_compiled_for_sampling_is_named(work, monkeypatch, capsys):
    from torch._dynamo.exc import InternalTorchDynamoError

    def refused(*_, **__):
        raise InternalTorchDynamoError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCH_LOGS")

    monkeypatch.setattr(NetworkScoreModel, "denoise_at", refused)
    monkeypatch.setattr(NetworkScoreModel, "on_grid", refused)
    message = r"torch cannot compile the network here \(.*compiler found\); .* leave --config\.sampling\.compile out$"
    assert_refused(capsys, [*TOY, "--config.sampling.compile=True"], message)
