"""The simulated shop: a catalogue, its pictures, its users and what they do. It knows nothing of the lake.

In the order data flows: ``parameters`` (every number that is a choice), ``randomness`` (one generator per thing);
``vocabulary``, ``titles`` (words); ``outline``, ``wear`` and ``goods`` (silhouettes), ``fabric`` and ``drawing``
(studio pictures), ``photograph`` (a user's picture); ``products`` and ``catalogue``; ``users``, ``sessions``,
``ranker`` and ``behaviour`` (what happens on a day); ``pictures`` and ``tables`` (files).
:func:`moon_ops.shops.simulate.simulate` runs them.
"""
