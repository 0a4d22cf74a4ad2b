"""Indexes of the first numbers of each vector, beside the index of whole ones: how many are asked for, and which are kept up to date.

A release names the length that it was judged with. So an index of a length stays up to date as long as it is there, whatever the setting
is now, and the way back to a release of another length is open. The index of whole vectors is always there.
"""

from __future__ import annotations

import functools
import logging

from moon_ops.embeddings import vector_tables
from moon_ops.errors import SettingsError, StageError
from moon_ops.publication.places import narrow_lengths
from moon_ops.registry.encoders import prefixes
from moon_ops.settings import Settings

log = logging.getLogger(__name__)


def asked(settings: Settings, encoder: int) -> int:
    """How many numbers of each of the encoder's vectors are to be searched, 0 for all; :class:`SettingsError` for a length of which it was
    not trained to make vectors.
    """
    wanted = settings.dimensions
    if not wanted or wanted == vector_tables.dim_of(settings.lake.open(vector_tables.table_name(encoder))):
        return 0
    known = prefixes(settings, encoder)
    if wanted not in known:
        trained = ", ".join(map(str, known)) or "none"
        raise SettingsError(
            f"MOON_DIMENSIONS = {wanted}: encoder {encoder} was not trained for vectors of that length (training.prefixes: {trained}), so "
            "its first numbers find far less",
            action="set MOON_DIMENSIONS to one of these or leave it empty, or train with training.prefixes",
        )
    return wanted


def kept(settings: Settings, encoder: int) -> list[int]:
    """The lengths of which this home keeps an index: those that are there, and the one that is asked for.

    An encoder that was not trained for that, e.g. of an older release which the night refreshes, has the index of whole vectors alone.
    """
    try:
        wanted = asked(settings, encoder)
    except (SettingsError, StageError) as fault:  # of vectors that no registered encoder made, too
        _tell(fault.problem)
        wanted = 0
    return sorted({*narrow_lengths(settings, encoder), *([wanted] if wanted else [])})


@functools.cache
def _tell(problem: str) -> None:
    """Once in a process: a service publishes every few seconds."""
    log.warning("%s; its index has whole vectors", problem)
