"""The one exception that users are meant to see."""

from __future__ import annotations


class DlcError(Exception):
    """The input or the options are wrong; the text names the file, node and operator concerned.

    The command line prints it as one line that begins ``dlc: error:`` and exits with code 2.
    """
