"""The Minari datasets on this machine."""

from __future__ import annotations

from envs.errors import UserError
from mbrl.data.minari import local_ids
from mbrl.data.offline import open_dataset


def lines() -> list[str]:
    """One a dataset: its id, how many rows, of which environment; of a damaged one what is wrong with it."""
    return [f"{id:<40} {_about(id)}" for id in local_ids()]


def _about(id: str) -> str:
    try:
        found = open_dataset(id)
    except UserError as error:
        return f"damaged: {error}"
    return f"{len(found):>12,} rows  {(found.about.env or {}).get('id', 'environment not named')}"
