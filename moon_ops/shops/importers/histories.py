"""Logs without times: rows of (user, item, clicked) that each bring the user's behaviours before them, turned into events in time.

The times are invented, and only their order means something. Rows of one user with one history are a visit. In a visit the history's
clicks come first, one after the other, then an impression per row, then the clicks on them; so what a row knows ends with its own history,
and no row of a visit knows the answer to another, as in the data set. The rows that the data set gives for training fill the first 80
of 100 days, those it judges with the last 12: the windows that click models are judged on (:mod:`moon_ops.release.windows`) begin
between them. A row is a session of its own, because nothing says which rows were shown together.
"""

from __future__ import annotations

import datetime as dt

from moon_ops.shops.importers.shop import Draft

DAY = 86_400_000_000  # microseconds
TICK = 100  # microseconds from event to event: short, so that a user's next visit begins after the last has ended
FIRST = dt.datetime(2025, 1, 1)  # noqa: DTZ001  # in the past, for nothing may lie in the future; UTC, as the database's times are
POSITIVE = 2**63 - 1  # the bits of an id without its sign: the layout has no negative ids
PERIODS = {"train": (0, 80 * DAY), "judge": (88 * DAY, 12 * DAY)}  # first moment and length

VISITS = """
SELECT split, user_id, any_value(behaviours) AS behaviours, any_value(categories) AS categories,
       list({'item_id': item_id, 'category': category, 'clicked': clicked} ORDER BY place) AS shown
FROM samples WHERE user_id IN (SELECT user_id FROM chosen) GROUP BY split, user_id, hash(behaviours)"""

# A longer history is the later one. Users take turns, so that two visits of one user lie apart.
PLACED = """
SELECT *, row_number() OVER (PARTITION BY split ORDER BY turn, md5(user_id::VARCHAR), user_id) AS number,
       count(*) OVER (PARTITION BY split) AS visits
FROM (SELECT *, row_number() OVER (PARTITION BY split, user_id ORDER BY len(history), md5(history::VARCHAR)) AS turn
      FROM (SELECT split, user_id, shown, list_filter(coalesce(behaviours, []), lambda item: item <> 0) AS history FROM visits))"""

TIMED = """
SELECT user_id, history, shown, CASE split {periods} END AS moment FROM placed"""

SHOWN = f"""
SELECT user_id, row.item_id & {POSITIVE} AS item_id, row.clicked AS clicked, moment + {TICK} * (before + number) AS impression,
       moment + {TICK} * (before + rows + number) AS click, row_number() OVER (ORDER BY moment, user_id, number) AS session_id
FROM (SELECT user_id, moment, len(history) AS before, len(shown) AS rows, unnest(shown) AS row, generate_subscripts(shown, 1) AS number
      FROM timed)"""

LOG = f"""
SELECT make_timestamp(moment + {TICK} * number) AS timestamp, user_id, item_id & {POSITIVE} AS item_id, 'click' AS event,
       NULL::BIGINT AS session_id
FROM (SELECT user_id, moment, unnest(history) AS item_id, generate_subscripts(history, 1) AS number FROM timed)
UNION ALL SELECT make_timestamp(impression), user_id, item_id, 'impression', session_id FROM shown
UNION ALL SELECT make_timestamp(click), user_id, item_id, 'click', session_id FROM shown WHERE clicked"""


def lay_out(draft: Draft, users: int | None) -> None:
    """Make relation ``log`` of a sample of users from relation ``samples``.

    ``samples`` has split (``train`` or ``judge``), user_id, item_id, category, clicked, behaviours (item ids, the oldest first, 0 for
    none), categories (of these) and place (what orders the rows of a visit). What was taken of it stays in relation ``visits``.
    """
    draft.sample("samples", users)
    draft.make("visits", VISITS)
    draft.view("placed", PLACED)
    first = int((FIRST - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1))  # noqa: DTZ001
    cases = (f"WHEN '{name}' THEN {first + start} + {length} // visits * number" for name, (start, length) in PERIODS.items())
    draft.make("timed", TIMED.format(periods=" ".join(cases)))
    draft.make("shown", SHOWN)
    draft.view("log", LOG)
