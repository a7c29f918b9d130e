"""The one kind of error a user is meant to read: it names the field, the value seen, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints it as one message and exits with code 2.

    Args:
        field: what was wrong, as the user wrote or would write it (``--env``, ``agent.init_args.planner``, a path).
        seen: the value that was seen.
        fix: what to do about it, one sentence.
        choices: valid values; the nearest ones to ``seen`` are suggested.
    """

    def __init__(self, field: str, seen: object, fix: str, choices: Iterable[str] = ()) -> None:
        self.field, self.seen, self.fix = field, seen, fix
        near = difflib.get_close_matches(str(seen), list(choices), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"{field}: {seen!r}: {fix}{hint}")
        self._hint = hint

    def within(self, place: str) -> UserError:
        """The same error, its field said to lie in ``place``."""
        return UserError(f"{place}: {self.field}", self.seen, self.fix + self._hint)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, object, str]]:
        """Errors cross process borders; what was seen may not, so its description goes."""
        return UserError, (self.field, _Described(repr(self.seen)), self.fix + self._hint)


class _Described:
    """Stands for a value of another process; shows as that value did there."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
