"""The command line: flags and dispatch."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from scoresde.errors import UsageError, flag_error, require, unknown_name

if TYPE_CHECKING:
    import torch
    from ml_collections import ConfigDict

    from scoresde.app.figures.subject import Subject
    from scoresde.app.visualize import Look
    from scoresde.checkpoint import Checkpoint

MODES = ("train", "sample", "compare", "calibrate", "evaluate", "encode", "interpolate", "visualize")

USAGE = """scoresde: score-based generative modelling through SDEs

  python main.py --mode train --sde vp              trains on handwritten digits, in runs/vp
  python main.py --mode sample --sampler pc         samples from the newest run
  python main.py --mode compare                     which sampler, and how many steps, for the newest run
  python main.py --mode calibrate --num_steps 8     makes --sampler auto better at 8 evaluations
  python main.py --mode evaluate --metric nll       log density of the held-out data, bits, distances
  python main.py --mode interpolate                 from one sample to another, through noise
  python main.py --mode visualize --what score_field   a picture; with no run, of a known mixture
  python main.py --mode train --sde ve --config toy --config.training.num_steps=2000

flags:"""


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, default: str | None, description: str) -> None:
        flags.DEFINE_string(name, default, description, flag_values=values)

    def count(name: str, default: int | None, description: str) -> None:
        flags.DEFINE_integer(name, default, description, flag_values=values)

    text(
        "mode", None, "train; of a trained model: sample, compare, calibrate, evaluate, encode, interpolate, visualize"
    )
    text("what", None, "visualize: score_field, trajectories, density, schedule, denoising, langevin or training")
    text("sde", None, "vp, subvp, ve, cosine, edm, flow or ddpm (train, visualize: vp; sample: that of the newest run)")
    text("sampler", "pc", "pc, auto (few steps), ancestral, ddim, unipc, heun, ode, ...: see docs/samplers.md")
    text("config", None, "a recipe of sde_configs, or a .py or .json file; --config.FIELD=VALUE changes a field")
    text("workdir", None, "folder of the run (train: runs/<sde>; sample: the newest run)")
    count("seed", None, "of training, or of the samples (the configuration's, 0)")
    text("device", "auto", "auto, cpu, cuda or cuda:N")
    text("checkpoint", None, "otherwise: a file of a run's checkpoints/ (the newest)")
    count("num_samples", 100, "how many; of calibrate: noises to learn from (640); of evaluate and encode: (all)")
    count("num_steps", None, "of the sampler (its default), the table (5, 6, 8 and 10), or the flow of a density (64)")
    text("labels", None, "sample: classes, as in 3 or 3,1,4 (all in turn); visualize: one of them")
    text(
        "output",
        None,
        "the picture to write, of visualize .png, .svg or .gif, of evaluate .json (in samples/ of the run)",
    )
    text("metric", "all", "evaluate: nll, bits, elbo, frechet, sw2, several between commas, or all that suit the data")
    text("input", None, "evaluate, encode, interpolate: a file or folder of samples (the run's held-out ones)")
    text("dequantization", "uniform", "evaluate: of whole numbers: uniform, truncated_normal or variational")
    text("calibrated", "on", "sample, compare: whether auto takes the tables that calibrate made: on or off")
    return values


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            return _dispatch(arguments)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # nobody reads what is printed any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def picture(what: str, description: str | None, argv: list[str] | None = None) -> int:
    """A script of one picture: `--mode visualize --what WHAT` with its own `--help`; returns the exit status."""
    from scoresde.app.visualize import LOOKS

    arguments = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(arguments):
        flags_of = ("sde", "config", "workdir", "checkpoint", "seed", "device", "output", *LOOKS[what].flags)
        print(f"{(description or '').strip()}\n\nflags: --{', --'.join(flags_of)}; python main.py --help explains them")
        return 0
    return main(["--mode=visualize", f"--what={what}", *arguments])


def _dispatch(arguments: list[str]) -> int:
    values: Any = _define_flags()  # flags hold values of any type
    if not arguments or {"--help", "-h", "--helpfull", "help"} & set(arguments):
        _print_help(values)
        return 0
    values.set_gnu_getopt(True)  # flags may follow the value in --config.FIELD VALUE
    try:
        rest = values(["main.py", *arguments], known_only=True)[1:]
    except flags.Error as error:
        raise flag_error(error) from error
    for name in values:
        require(values[name].value != "", f"{name}='': is empty; give a value, or leave --{name} out")
    mode = values["mode"].value
    require(mode is not None, f"mode: give --mode {', --mode '.join(MODES)}")
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    modes = {"train": _train, "sample": _sample, "compare": _compare, "calibrate": _calibrate, "evaluate": _evaluate}
    modes |= dict.fromkeys(("encode", "interpolate"), _encode) | {"visualize": _visualize}
    require(
        values["what"].value is None or mode == "visualize", f"what={values['what'].value}: belongs to --mode visualize"
    )
    return modes[mode](values, rest)


def _refuse(values: Any, names: tuple[str, ...], reason: str) -> None:
    """Raises `UsageError` for flags that a mode does not know."""
    for name in names:
        require(not values[name].present, f"{name}={values[name].value}: {reason}")


OF_EVALUATION = ("metric", "dequantization")


def _train(values: Any, rest: list[str]) -> int:
    from scoresde.app.config import load_config, override
    from scoresde.app.device import choose_device
    from scoresde.app.run_folder import RunFolder

    _refuse(values, OF_EVALUATION, "belongs to --mode evaluate; leave it out")
    _refuse(values, ("input",), "training takes --config.data.path")
    for name in ("checkpoint", "sampler", "num_samples", "num_steps", "labels", "output", "calibrated"):
        remedy = "training has --config.training.num_steps" if name == "num_steps" else "leave it out"
        require(not values[name].present, f"{name}={values[name].value}: belongs to --mode sample; {remedy}")
    config = load_config(values["sde"].value, values["config"].value)
    override(config, rest, values)
    if values["seed"].value is not None:
        config.seed = values["seed"].value
    default_name = values["sde"].value or Path(values["config"].value or "vp").stem
    if values["sde"].value and values["config"].value:
        default_name = f"{Path(values['config'].value).stem}-{values['sde'].value}"
    device = choose_device(values["device"].value)

    from scoresde.app.train import train
    from scoresde.training import leave_world

    status = train(config, RunFolder(Path(values["workdir"].value or f"runs/{default_name}")), device)
    leave_world()
    return status


def _trained(values: Any, rest: list[str]) -> tuple[Checkpoint, ConfigDict, Path]:
    """The checkpoint that is asked for, its configuration with the settings given here, and where results go."""
    from scoresde import checkpoint
    from scoresde.app.config import load_config, of_checkpoint, override_sampling
    from scoresde.app.run_folder import HOW_TO_TRAIN, RunFolder, newest_run

    require(
        values["config"].value is None,
        f"config={values['config'].value!r}: a checkpoint holds its own; --config.sampling.FIELD=VALUE changes a field",
    )
    sde, workdir, file = (values[name].value for name in ("sde", "workdir", "checkpoint"))
    wanted = load_config(sde, None).sde.name if sde else None
    require(not (file and workdir), f"checkpoint={file!r}, workdir={workdir!r}: give one of the two")
    if file is not None:
        loaded, folder = checkpoint.load(file), Path(file).parent.parent / "samples"
    else:
        run = RunFolder(Path(workdir or f"runs/{sde}")) if workdir or sde else newest_run(Path("runs"))
        newest = run.newest_checkpoint()
        require(newest is not None, f"workdir={str(run.path)!r}: nothing is trained there yet; {HOW_TO_TRAIN}")
        assert newest is not None
        loaded, folder = newest, run.samples
        print(f"sampling from {run.path}, step {loaded.step}", flush=True)
    require(
        {"config", "data"} <= loaded.description.keys(),
        f"checkpoint={file!r}: was saved from Python and holds a model alone; sample from it there: "
        f"samplers.sample(scoresde.load_model({file!r}), samplers.Heun(), 100)",
    )
    config = of_checkpoint(loaded.description["config"])
    require(
        wanted in (None, config.sde.name),
        f"sde={sde!r}: this model was trained under {config.sde.name}; leave --sde out, or choose another run",
    )
    override_sampling(config, rest, values)
    return loaded, config, folder


def _output(values: Any, default: Path) -> Path:
    """The file that is to be written, of the kind of the default."""
    output, suffix = Path(values["output"].value or default), default.suffix
    require(output.suffix in ("", suffix), f"output={str(output)!r}: need the name of a {suffix} file")
    return output.with_suffix(suffix)


def _takes_calibrated(values: Any) -> bool:
    text = values["calibrated"].value
    require(text in ("on", "off"), f"calibrated={text!r}: need on or off")
    return bool(text == "on")


def _sample(values: Any, rest: list[str]) -> int:
    from scoresde.app.device import choose_device

    _refuse(values, (*OF_EVALUATION, "input"), "belongs to --mode evaluate; leave it out")
    calibrated = _takes_calibrated(values)
    loaded, config, folder = _trained(values, rest)
    device = choose_device(values["device"].value)
    seed = config.seed if values["seed"].value is None else values["seed"].value
    output = _output(values, folder / f"{values['sampler'].value}-seed{seed}.png")

    from scoresde.app.sample import sample
    from scoresde.training import leave_world

    status = sample(
        loaded,
        config,
        values["sampler"].value,
        output,
        num_samples=values["num_samples"].value,
        num_steps=values["num_steps"].value,
        labels=values["labels"].value,
        seed=seed,
        device=device,
        calibrated=calibrated,
    )
    leave_world()
    return status


def _compare(values: Any, rest: list[str]) -> int:
    from scoresde.app.device import choose_device

    _refuse(values, ("sampler", "num_steps", "labels"), "compare runs many; leave it out")
    _refuse(values, (*OF_EVALUATION, "input"), "belongs to --mode evaluate; leave it out")
    calibrated = _takes_calibrated(values)
    loaded, config, folder = _trained(values, rest)
    device = choose_device(values["device"].value)
    output = _output(values, folder / "compare.png")

    from scoresde.app.compare import compare

    num_samples = values["num_samples"].value
    return compare(loaded, config, output, num_samples=num_samples, device=device, calibrated=calibrated)


def _calibrate(values: Any, rest: list[str]) -> int:
    from scoresde.app.device import choose_device

    unused = ("labels", "output", "calibrated", "input", *OF_EVALUATION)
    _refuse(values, unused, "does nothing in calibration; leave it out")
    sampler = values["sampler"]
    require(
        not sampler.present or sampler.value == "auto",
        f"sampler={sampler.value!r}: calibration is for --sampler auto, which takes the tables; leave it out",
    )
    loaded, config, _ = _trained(values, rest)
    device = choose_device(values["device"].value)

    from scoresde.app.calibrate import COUNTS, NUM_NOISES, calibrate

    counts = COUNTS if values["num_steps"].value is None else (values["num_steps"].value,)
    num_noises = values["num_samples"].value if values["num_samples"].present else NUM_NOISES
    seed = config.seed if values["seed"].value is None else values["seed"].value
    return calibrate(loaded, config, counts, num_noises=num_noises, seed=seed, device=device)


def _evaluate(values: Any, rest: list[str]) -> int:
    from scoresde.app.device import choose_device

    _refuse(values, ("labels", "calibrated"), "does nothing in evaluation; leave it out")
    loaded, config, folder = _trained(values, rest)
    device = choose_device(values["device"].value)
    output = _output(values, folder / "evaluate.json")

    from scoresde.app.evaluate import evaluate

    return evaluate(
        loaded,
        config,
        output,
        metric=values["metric"].value,
        path=values["input"].value,
        num_samples=values["num_samples"].value if values["num_samples"].present else None,
        num_steps=values["num_steps"].value,
        sampler_name=values["sampler"].value if values["sampler"].present else None,
        dequantization=values["dequantization"].value,
        seed=config.seed if values["seed"].value is None else values["seed"].value,
        device=device,
    )


def _encode(values: Any, rest: list[str]) -> int:
    from scoresde.app.device import choose_device

    mode = values["mode"].value
    _refuse(
        values, ("sampler", "labels", "seed", "calibrated", *OF_EVALUATION), f"does nothing in {mode}; leave it out"
    )
    loaded, config, folder = _trained(values, rest)
    device = choose_device(values["device"].value)
    output = _output(values, folder / f"{mode}.png")

    from scoresde.app.invert import encode_data, interpolate

    return (encode_data if mode == "encode" else interpolate)(
        loaded,
        config,
        output,
        path=values["input"].value,
        num_samples=values["num_samples"].value if values["num_samples"].present else None,
        num_steps=values["num_steps"].value,
        device=device,
    )


def _visualize(values: Any, rest: list[str]) -> int:
    """A run that is named, or the newest where nothing is; otherwise what --sde and --config say, with no run."""
    from scoresde.app.device import choose_device
    from scoresde.app.figures.subject import Options
    from scoresde.app.visualize import FLAGS, look_of, visualize

    what, output = values["what"].value, values["output"].value
    look = look_of(what, output)
    _refuse(values, (*OF_EVALUATION, "input", "calibrated"), "does nothing in visualize; leave it out")
    others = tuple(name for name in FLAGS if name not in look.flags)
    _refuse(values, others, f"does nothing in the picture {what}; leave it out")
    device = choose_device(values["device"].value)
    subject, folder = _looked_at(values, rest, look, device)
    path = Path(output or folder / f"{what}.png")
    given = {
        name: values[name].value if values[name].present else None for name in ("num_samples", "num_steps", "sampler")
    }
    seed = subject.config.seed if values["seed"].value is None else values["seed"].value
    return visualize(look, subject, Options(**given, seed=seed), path if path.suffix else path.with_suffix(".png"))


def _looked_at(values: Any, rest: list[str], look: Look, device: torch.device) -> tuple[Subject, Path]:
    """What a picture is of, and the folder where it goes."""
    from scoresde.app.config import load_config, override
    from scoresde.app.device import choose_threads
    from scoresde.app.figures.subject import TRAINED_IN_SECONDS, of_checkpoint, of_data
    from scoresde.app.run_folder import RunFolder

    named = values["checkpoint"].value or values["workdir"].value
    given = values["sde"].value or values["config"].value or any(a.startswith("--config.") for a in rest)
    newest = look.newest and not given and any(Path("runs").glob("*/checkpoints/step-*.safetensors"))
    labels = values["labels"].value
    if named or newest:
        loaded, config, folder = _trained(values, rest)
        return of_checkpoint(loaded, config, RunFolder(folder.parent), labels, device), folder
    config = load_config(values["sde"].value, values["config"].value or "toy")
    if values["config"].value is None:
        config.data.name = look.data
        config.network.width = 96
    config.training.update(TRAINED_IN_SECONDS)
    config.objective = load_config("edm", None).objective  # small noise levels are learned in fewer steps
    override(config, rest, values)
    if values["seed"].value is not None:
        config.seed = values["seed"].value
    choose_threads(0)
    subject = of_data(config, labels, look.learn, device)
    print(
        f"of {config.data.path or config.data.name} under {config.sde.name}, with no run (--workdir names one)",
        flush=True,
    )
    return subject, Path()


def _print_help(values: Any) -> None:
    from scoresde.app.config import describe_fields, recipes

    print(USAGE)
    for name in values:
        flag = values[name]
        default = "" if flag.default is None else f" (default {flag.default})"
        print(f"  --{name}".ljust(16) + f"{flag.help}{default}")
    print(f"\nrecipes for --config: {', '.join(recipes())}\n\nfields of the default configuration:")
    print(describe_fields())
