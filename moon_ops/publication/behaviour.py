"""Users' sequences, handed over at once: who has just clicked is served what they have just clicked, without waiting for the night.

Counts of items go on changing once a day: a count of half a day would be other than what models were trained on.
"""

from __future__ import annotations

import datetime as dt

from moon_ops.embeddings import features
from moon_ops.embeddings.generations import turn
from moon_ops.lake import clocks, statistics
from moon_ops.publication import sharing
from moon_ops.publication.places import handed
from moon_ops.publication.publication import online_view
from moon_ops.settings import Settings

VIEW = "user_behavior"


def publish_sequences(settings: Settings, encoder: int, *, now: dt.datetime) -> int:
    """Hand the sequences of those who have clicked since to the online store, of a published ``encoder``; how many users.

    It costs in proportion to these users' clicks. Publications take turns with it as among themselves, and a killed one is done again.
    """
    with sharing.turn(settings):
        sharing.fetch_in_turn(settings, encoder)
        statistics.derive_clicks(settings.lake)
        store = features.open_store(settings)
        with turn(handed(settings, VIEW)):
            return online_view(settings, store, VIEW, clocks.present(settings.lake, now), full=False)
