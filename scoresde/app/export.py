"""`--mode export`: a trained model, or a whole sampler, for other programs."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from samplers.module import SamplerModule
from scoresde import condition
from scoresde.app.drawing import choose_sampler
from scoresde.app.files import make_folder
from scoresde.app.flags import ExportFlags
from scoresde.app.trained import Trained
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.interop import to_diffusers
from scoresde.score_model import ScoreModel

TARGETS = ("diffusers", "onnx", "torch_export")
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
CLOSE = 1e-4  # largest difference of a graph's output, relative to the largest value, that passes
EXAMPLES = 3  # samples of the batch that a graph is made with
CHECKED = 5  # and of the one that it is compared on


@final
class DenoiserModule(nn.Module):
    """A model's denoiser: x_t `(B, *shape)`, t `(B,)` and a condition to D, in the model's units."""

    def __init__(self, network: nn.Module, model: ScoreModel) -> None:
        super().__init__()
        self.network = network
        self._model = model

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        return self._model.denoise_at(x_t, self._model.sde.level(t), cond)  # `denoise` would check values


@final
class CaptionedSampler(nn.Module):
    """A sampler of a model of captions: z `(B, *shape)`, tokens `(B, L, C)` and their mask `(B, L)` to samples."""

    def __init__(self, sampler: SamplerModule) -> None:
        super().__init__()
        self.sampler = sampler
        self.nfe = sampler.nfe

    def forward(self, z: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        samples: Tensor = self.sampler(z, {"tokens": tokens, "mask": mask})
        return samples


@final
class CaptionedDenoiser(nn.Module):
    """The denoiser of a model of captions: x_t `(B, *shape)`, t `(B,)`, tokens and mask to D."""

    def __init__(self, denoiser: DenoiserModule) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        x0_hat: Tensor = self.denoiser(x_t, t, {"tokens": tokens, "mask": mask})
        return x0_hat


def export(flags: ExportFlags, overrides: Sequence[str]) -> int:
    """Writes what flags ask for, and compares it with the model; returns the exit status."""
    target = flags.to
    require(target in TARGETS, f"to={target!r}: need {', '.join(TARGETS)}")
    require(
        target != "diffusers" or (flags.sampler is None and flags.num_steps is None),
        f"to='diffusers', sampler={flags.sampler!r}: diffusers has samplers of its own; leave --sampler out",
    )
    trained = Trained.of(flags, overrides)
    if target == "diffusers":
        folder = Path(flags.output or _default(trained, "diffusers"))
        to_diffusers(trained.network_model, folder)
        print(f"written: {folder}, a pipeline of diffusers")
        return 0
    module, inputs = _sampler(trained, flags) if flags.sampler else _denoiser(trained)
    what = f"{flags.sampler}-{module.nfe}" if isinstance(module, SamplerModule | CaptionedSampler) else "denoiser"
    what += trained.guiding.label  # beside the graph without guidance
    file = Path(flags.output or f"{_default(trained, what)}{SUFFIXES[target]}")
    require(file.suffix == SUFFIXES[target], f"output={str(file)!r}: a file of {target} ends in {SUFFIXES[target]}")
    make_folder(file.parent, "output", file.parent)
    difference = _write(module.eval(), inputs, target, file)
    names = ", ".join(inputs(1))
    print(f"written: {file}, of inputs {names}; its largest relative difference from the model is {difference:.1e}")
    return 0


def _default(trained: Trained, name: str) -> Path:
    """Where results go that are not named."""
    return trained.folder.parent / "exported" / name


def _inputs(trained: Trained, count: int) -> dict[str, Tensor]:
    """Noise, and classes or encoded captions, of some samples."""
    model = trained.network_model
    generator = torch.Generator().manual_seed(count)
    found: dict[str, Tensor] = {
        "z": torch.randn(count, *model.shape, generator=generator).to(model.device, model.dtype)
    }
    cond = condition.to(trained.conditions(count), model.device)
    if isinstance(cond, Tensor):
        return {**found, "label": cond}
    if not isinstance(cond, Mapping):
        return found
    return found | {name: part for name, part in cond.items() if isinstance(part, Tensor)}


def _sampler(trained: Trained, flags: ExportFlags) -> tuple[SamplerModule | CaptionedSampler, Any]:
    """A whole sampler, and its inputs for a number of samples."""
    assert flags.sampler is not None
    sampler, grid = choose_sampler(trained, flags.sampler, flags.num_steps, leader=True)
    module = SamplerModule(trained.network_model, sampler, grid, model=trained.model)
    return CaptionedSampler(module) if trained.captioned else module, lambda count: _inputs(trained, count)


def _denoiser(trained: Trained) -> tuple[DenoiserModule | CaptionedDenoiser, Any]:
    """The denoiser, and its inputs for a number of samples."""
    model = trained.network_model

    def inputs(count: int) -> dict[str, Tensor]:
        found = _inputs(trained, count)
        x_t = found.pop("z")
        t = torch.linspace(model.sde.t_min, model.sde.t_max, count + 1, device=model.device, dtype=model.dtype)[1:]
        return {"x_t": x_t, "t": t, **found}

    module = DenoiserModule(model, trained.model)
    return CaptionedDenoiser(module) if trained.captioned else module, inputs


@torch.no_grad()
def _write(module: nn.Module, inputs: Any, target: str, file: Path) -> float:
    """Writes the graph of a module for batches of any size; returns its largest relative difference from the module.

    Raises:
        UsageError: if it cannot be written, or the difference is too large.
    """
    given = inputs(EXAMPLES)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    shapes = tuple({0: batch} for _ in given)
    checked = inputs(CHECKED)
    exact = module(*checked.values())
    partial = file.with_name(f".partial-{file.name}")
    try:
        with _quietly():
            program = torch.export.export(module, tuple(given.values()), dynamic_shapes=shapes)
        if target == "torch_export":
            with _quietly(), open(partial, "wb") as handle:
                torch.export.save(program, handle)
            found = torch.export.load(partial).module()(*checked.values())
        else:
            found = _write_onnx(program, list(given), checked, partial)
        difference = float((found - exact).abs().max() / exact.abs().max().clamp_min(1e-12))
        require(
            difference <= CLOSE,
            f"to={target!r}: the graph differs from the model by {difference:.1e}, relative to its largest value; at "
            f"most {CLOSE:g} passes, so it is not written",
        )
        partial.replace(file)
    except UsageError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:  # tracing fails in many ways
        raise UsageError(f"to={target!r}: this model cannot be written as a graph ({_reason(error)})") from error
    finally:
        partial.unlink(missing_ok=True)
    return difference


def _reason(error: Exception) -> str:
    """What a message of torch says, in one line."""
    said = str(error)
    lacking = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", said)
    return f"ONNX has no {lacking[1]}" if lacking else " ".join(said.split())[:200]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch prints while it traces."""
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _write_onnx(program: Any, names: list[str], checked: dict[str, Tensor], file: Path) -> Tensor:
    """Writes a graph of ONNX; returns its output by onnxruntime."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch needs it
    except ImportError as error:
        raise UsageError(f"to='onnx': needs {error.name}; pip install 'scoresde[export]'") from error
    with _quietly():
        written = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["samples"], verbose=False)
    assert written is not None
    written.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.cpu().numpy() for name, value in checked.items()})[0]
    return torch.from_numpy(found).to(next(iter(checked.values())).device)
