"""The parts of one service, which its routes share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from moon_ops.publication.shop_ids import ShopIds
from moon_ops.serving.behaviour import Behaviour
from moon_ops.serving.engine import Engine
from moon_ops.serving.exposition import Counts
from moon_ops.serving.follower import Follower
from moon_ops.serving.keys import Keyring
from moon_ops.serving.live import Intake
from moon_ops.serving.processes import Mates
from moon_ops.serving.watch import Watch
from moon_ops.settings import Settings


@dataclass(frozen=True)
class Service:
    """What a service is made of: what computes, what it follows, watches, takes in and counts, and whose keys it knows."""

    settings: Settings
    engine: Engine
    follower: Follower
    watch: Watch
    intake: Intake
    shop_ids: ShopIds
    behaviour: Behaviour
    ring: Keyring
    counts: Counts
    mates: Mates | None = None  # the other processes of this service
    draining: threading.Event = field(default_factory=threading.Event)  # no more requests are wanted
