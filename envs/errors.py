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
