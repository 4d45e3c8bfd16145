"""How a user's mistake is answered: status 2, and one line that says what, with what value, and what to do."""

import re

from scoresde.app.cli import main


def with_defaults(arguments, *defaults):
    """Words of a command, and of the default flags those that it does not give."""
    given = arguments.split()
    return given + [flag for flag in defaults if not any(word.startswith(flag.split("=")[0]) for word in given)]


def assert_mistake(capsys, arguments, message):
    capsys.readouterr()  # what came before
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(message, err), err
