"""The error that users read keeps its message when it crosses a process border."""

from __future__ import annotations

import pickle
import threading

from envs.errors import UserError


def test_the_message_crosses_a_process_border() -> None:
    error = UserError("env.id", "Hoper-v5", "there is no such environment.", ["Hopper-v5"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert "Did you mean Hopper-v5?" in str(again)
    assert (again.field, repr(again.seen)) == ("env.id", "'Hoper-v5'")


def test_what_was_seen_need_not_be_picklable() -> None:
    error = UserError("model", threading.Lock(), "give a model")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
