"""The command line: flags, help and dispatch."""

from __future__ import annotations

import io
import os
import re
import sys
import typing
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags as absl_flags

from scoresde.app.flags import MODES, ComputingFlags, Flags, Mode, TrainedFlags, modes_with, named
from scoresde.app.interrupt import noted_interrupts
from scoresde.errors import (
    UsageError,
    cannot_compile,
    flag_error,
    machine_error,
    out_of_memory,
    require,
    tried,
    unknown_name,
)

HELP = {"--help", "-h", "--helpfull", "help"}
TRY_SAMPLES = 16  # at a time, if there is not enough memory for more
MAY_BE_EMPTY = ("prompt",)  # flags whose empty value means something
NO_COMPILER = "install a compiler (of C++, for CUDA Triton), or leave --config.sampling.compile out"
EXAMPLES = """scoresde: score-based generative modelling through SDEs

  python main.py --mode train --sde vp              trains on handwritten digits, in runs/vp
  python main.py --mode sample --sampler pc         samples from the newest run
  python main.py --mode compare                     which sampler, and how many steps, for the newest run
  python main.py --mode calibrate --num_steps 8     makes --sampler auto better at 8 evaluations
  python main.py --mode evaluate --metric nll       log density of the held-out data, bits, distances
  python main.py --mode interpolate                 from one sample to another, through noise
  python main.py --mode solve --task inpaint        what is missing of held-out samples, and how sure that is
  python main.py --mode visualize --what score_field   a picture; with no run, of a known mixture
  python main.py --mode train --sde ve --config toy --config.training.num_steps=2000
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for a mistake or a fault of the machine, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_anything()
    with noted_interrupts() as interrupts:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
                return _dispatch(arguments)
        except (Exception, KeyboardInterrupt) as error:
            return _report(KeyboardInterrupt() if interrupts else error)


def _report(error: BaseException) -> int:
    """Says why a command ended, and returns its exit status; raises what is a fault of the program."""
    match error:
        case UsageError():
            print(f"error: {error}", file=sys.stderr)
            return 2
        case BrokenPipeError():  # nobody reads what is printed any more, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case OSError():
            print(f"error: {machine_error(error)}", file=sys.stderr)
            return 2
        case KeyboardInterrupt():
            print("stopped", file=sys.stderr)
            return 130
    raise error


def picture(what: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """A script of one picture: `--mode visualize --what WHAT` with its own `--help`; returns the exit status."""
    from scoresde.app.visualize import FIGURES

    arguments = list(sys.argv[1:] if argv is None else argv)
    if HELP & set(arguments):
        _print_anything()
        flags_of = ("sde", "config", "workdir", "checkpoint", "seed", "device", "output", *FIGURES[what].flags)
        print(f"{(description or '').strip()}\n\nflags: --{', --'.join(flags_of)}; python main.py --help explains them")
        return 0
    return main(["--mode=visualize", f"--what={what}", *arguments])


def _print_anything() -> None:
    """Lets names of any letters be printed: what the encoding of the output lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(arguments: list[str]) -> int:
    values = _defined_flags()
    values.set_gnu_getopt(True)  # flags may follow the value in --config.FIELD VALUE
    wants_help = not arguments or bool(HELP & set(arguments))
    try:
        rest = values(["main.py", *(a for a in arguments if a not in HELP)], known_only=True)[1:]
    except absl_flags.Error as error:
        raise flag_error(error) from error
    name = values["mode"].value
    if name is not None and name not in MODES:
        raise unknown_name("mode", name, MODES)
    if wants_help:
        print(help_text(name))
        return 0
    if name is None:
        raise UsageError(f"mode: give --mode {', --mode '.join(MODES)}")
    mode = MODES[name]
    parsed = _parsed(values, name, mode)
    for argument in rest:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and not flag.startswith("--config."):
            known = [f"--{name}" for name in named(mode.flags)]
            raise unknown_name("flag", flag, [*known, "--mode", "--config.FIELD"])
    try:
        return mode.load()(parsed, rest)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise _memory_error(error, mode, rest) from error
        if cannot_compile(error):
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"torch cannot compile the network here ({reason}); {NO_COMPILER}") from error
        raise


def _memory_error(error: BaseException, mode: Mode, arguments: Sequence[str]) -> UsageError:
    """The error of a command for which memory does not suffice, with fewer samples at a time to try."""
    said = f"out of memory{tried(error)}"
    if not issubclass(mode.flags, ComputingFlags):
        return UsageError(f"{said}; close other programs, or use another machine")
    given = re.search(r"--config\.sampling\.batch_size[= ](\d+)", " ".join(arguments))
    size = int(given[1]) // 2 if given else TRY_SAMPLES
    fewer = f"fewer samples at a time, as with --config.sampling.batch_size={size}" if size else "a larger --device"
    less = "" if issubclass(mode.flags, TrainedFlags) else "smaller data or a smaller --config.network, or "
    return UsageError(f"{said}; try {less}{fewer}")


def _defined_flags() -> absl_flags.FlagValues:
    """absl's flags: those of all modes together, without defaults."""
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("mode", None, "what to do", flag_values=values)
    for mode in MODES.values():
        kinds = typing.get_type_hints(mode.flags)
        for name, field in named(mode.flags).items():
            if name not in values:
                kind = (kinds[field.name], *typing.get_args(kinds[field.name]))
                number = next((each for each in (int, float) if each in kind), None)
                if number is int:
                    absl_flags.DEFINE_integer(name, None, name, flag_values=values)
                elif number is float:
                    absl_flags.DEFINE_float(name, None, name, flag_values=values)
                else:
                    absl_flags.DEFINE_string(name, None, name, flag_values=values)
    return values


def _parsed(values: absl_flags.FlagValues, name: str, mode: Mode) -> Flags:
    """The flags of a mode.

    Raises:
        UsageError: for a flag that is empty, or belongs to other modes.
    """
    own = named(mode.flags)
    given: dict[str, Any] = {}
    for flag in values:
        if flag == "mode" or not values[flag].present:
            continue
        value = values[flag].value
        require(value != "" or flag in MAY_BE_EMPTY, f"{flag}='': is empty; give a value, or leave --{flag} out")
        shown = f"{value:g}" if isinstance(value, float) else value
        require(flag in own, f"{flag}={shown}: belongs to {_list_modes(flag)}; {_instead(name, mode, flag)}")
        given[own[flag].name] = value
    return mode.flags(**given)


def _instead(name: str, mode: Mode, flag: str) -> str:
    """What to do about a flag that belongs to other modes."""
    other = mode.flags.instead.get(flag)
    return f"leave it out of --mode {name}" if other is None else f"--mode {name} has {other}"


def _list_modes(flag: str) -> str:
    return ", ".join(f"--mode {mode}" for mode in modes_with(flag))


def help_text(name: str | None) -> str:
    """What `--help` prints: of one mode its flags, otherwise everything."""
    from scoresde.app.config import describe_fields, recipes

    if name is not None:
        mode = MODES[name]
        lines = [f"--mode {name}: {mode.summary}", "", *_describe_flags(mode.flags)]
        if not issubclass(mode.flags, ComputingFlags):
            return "\n".join(lines)
        takes_all = "config" in named(mode.flags)
        fields = describe_fields("" if takes_all else "sampling.")
        return "\n".join([*lines, "", "fields of the configuration that it takes:", fields])
    shared = named(TrainedFlags)
    lines = [EXAMPLES, "modes (python main.py --mode MODE --help shows one):"]
    lines += [f"  {key:<18}{mode.summary}" for key, mode in MODES.items()]
    for key, mode in MODES.items():
        if not issubclass(mode.flags, TrainedFlags):
            lines += ["", f"flags of --mode {key}:", *_describe_flags(mode.flags)]
    lines += ["", "flags of every other mode:", *_describe_flags(TrainedFlags)]
    for key, mode in MODES.items():
        own = _describe_flags(mode.flags, shared)
        if issubclass(mode.flags, TrainedFlags) and own:
            lines += ["", f"and of --mode {key}:", *own]
    lines += ["", f"recipes for --config: {', '.join(recipes())}", "", "fields of the default configuration:"]
    return "\n".join([*lines, describe_fields()])


def _describe_flags(flags: type[Flags], left_out: Collection[str] = ()) -> list[str]:
    """A line for each flag of a class; names of options are filled in from where they are defined."""
    from scoresde.app.config import sdes
    from scoresde.app.densities import VARIATIONAL
    from scoresde.app.distances import NETWORKS
    from scoresde.app.evaluate import METRICS
    from scoresde.app.export import TARGETS
    from scoresde.app.import_weights import AS
    from scoresde.app.methods import METHODS
    from scoresde.app.tasks import TASKS
    from scoresde.app.visualize import FIGURES
    from scoresde.metrics import DEQUANTIZATIONS
    from sde_configs.build import AUTO, SAMPLERS

    names = {
        "sdes": ", ".join(sdes()),
        "samplers": ", ".join((AUTO, *SAMPLERS)),
        "metrics": ", ".join(METRICS),
        "formats": ", ".join(AS),
        "targets": ", ".join(TARGETS),
        "tasks": ", ".join(TASKS),
        "methods": ", ".join((AUTO, *METHODS)),
        "networks": ", ".join(NETWORKS),
        "figures": ", ".join(FIGURES),
        "dequantizations": ", ".join((*DEQUANTIZATIONS, VARIATIONAL)),
    }
    lines = []
    for name, field in named(flags).items():
        if name not in left_out:
            default = "" if field.default is None else f" (default {field.default})"
            lines.append(f"  --{name}".ljust(22) + field.metadata["help"].format(**names) + default)
    return lines
