"""What people do on a shop's search page, for Locust: `pip install locust`, then

    locust -f benchmarks/peers/locustfile.py --host http://127.0.0.1:8321

against any running service (`--headless -u 50 -r 10 -t 1m` without its page). Words and pictures are the shop's own: each user starts with
some searches, and goes on from what it has found. `MOON_KEY`: a key with the scopes search and score, where the service wants one.
A request that is told to come again (429) is no failure.
"""

from __future__ import annotations

import os
import random
from typing import Any

from locust import FastHttpUser, between, task

WORDS = os.environ.get("MOON_WORDS", "red,blue,black,white,wood,cotton,small,large,summer,lamp,dress,shoes,mug,bag").split(",")
KEY = os.environ.get("MOON_KEY", "")


class Shopper(FastHttpUser):
    """Somebody who searches, looks at pictures, photographs what is liked, and is recommended more."""

    wait_time = between(0.5, 2.0)
    default_headers = {"authorization": f"Bearer {KEY}"} if KEY else {}

    def on_start(self) -> None:
        """Find something first."""
        self.user_id, self.items, self.pictures = random.randrange(1, 10_000), list[Any](), list[bytes]()
        for _ in range(3):
            self.by_text()
        self.look()

    @task(6)
    def by_text(self) -> None:
        """A search by words."""
        words = " ".join(random.sample(WORDS, 2))
        self.keep(self.asked("POST", "/v1/search", data={"text": words, "k": "20"}))

    @task(4)
    def by_picture(self) -> None:
        """A search by a picture that was seen."""
        if self.pictures:
            shown = ("picture.jpg", random.choice(self.pictures), "image/jpeg")
            self.keep(self.asked("POST", "/v1/search", files={"image": shown}, data={"k": "10"}))

    @task(4)
    def look(self) -> None:
        """A picture of an item that was found."""
        seen = [item["image_ids"][0] for item in self.items if item.get("image_ids")]
        if seen:
            content = self.asked("GET", f"/v1/images/{random.choice(seen)}", name="/v1/images/{image_id}", wanted="content")
            self.pictures = [*self.pictures, content][-5:] if content else self.pictures

    @task(2)
    def similar(self) -> None:
        """More like one."""
        if self.items:
            chosen = random.choice(self.items)["item_id"]
            self.keep(self.asked("GET", f"/v1/items/{chosen}/similar?k=10", name="/v1/items/{item_id}/similar"))

    @task(2)
    def score(self) -> None:
        """Which of them is likely to be clicked."""
        if self.items:
            self.asked("POST", "/v1/score", json={"user_id": self.user_id, "item_ids": [item["item_id"] for item in self.items[:10]]})

    @task(1)
    def recommend(self) -> None:
        """Retrieval, relevance and ranking in one call."""
        self.asked("POST", "/v1/recommend", json={"user_id": self.user_id, "text": random.choice(WORDS), "k": 5})

    def asked(self, method: str, path: str, *, wanted: str = "json", **given: Any) -> Any:
        """The answer as ``json`` or ``content``; None if there is none."""
        with self.client.request(method, path, catch_response=True, headers=self.default_headers, **given) as answer:
            if answer.status_code == 429:
                answer.success()
                return None
            return (answer.json() if wanted == "json" else answer.content) if answer.status_code == 200 else None

    def keep(self, found: Any) -> None:
        """Remember what was found."""
        self.items = [*self.items, *(found or {}).get("items", [])][-50:]
