"""The one error that a user is meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in settings, data or folders: the message names what is wrong, its value, and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' when `word` is close to a known one, else ''."""
    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
