"""moon_ops: operate multimodal item embeddings for e-commerce search ads.

Rooms, in the order data flows: ``lake ← {encoder, embeddings} ← ctr ← release ← {serving, dags} ← cli``. Imports point left only.
"""

__version__ = "0.1.0"
