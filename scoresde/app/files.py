"""Where commands write, and how they name the fields of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoresde.errors import UsageError, require


def make_folder(folder: Path, argument: str, value: Path) -> None:
    """Makes a folder for the sake of an argument of the command line.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"{argument}={str(value)!r}: cannot be written ({error.strerror}); choose another with --{argument}"
        ) from error


def output_path(given: str | None, default: Path) -> Path:
    """The file that a command is to write: what `--output` names, or the default; of the default's kind.

    Its folder is made.

    Raises:
        UsageError: for another kind of file, a folder, or a place that cannot be written.
    """
    output = Path(given or default)
    suffix = default.suffix
    require(output.suffix in ("", suffix), f"output={str(output)!r}: need the name of a {suffix} file")
    output = output.with_suffix(suffix)
    make_folder(output.parent, "output", output)
    require(not output.is_dir(), f"output={str(output)!r}: is a folder; choose another with --output")
    return output


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return fields
