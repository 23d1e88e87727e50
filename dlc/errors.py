"""The one exception that users are meant to see."""

from __future__ import annotations


class DlcError(Exception):
    """The input or the options are wrong; the text names the file, node and operator concerned.

    The command line prints it as one line that begins ``dlc: error:`` and exits with code 2. Names come from models and
    may hold anything: what cannot be printed, line breaks included, is shown as an escape.
    """

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
