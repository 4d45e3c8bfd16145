"""How a user's mistake is answered: status 2, and one line that says what, with what value, and what to do."""

import re

from scoresde.app.cli import main


def assert_mistake(capsys, arguments, message):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(message, err), err
