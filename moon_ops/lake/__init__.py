"""The lake: immutable tables and the way into them. Knows nothing of encoders, vectors or click models."""
