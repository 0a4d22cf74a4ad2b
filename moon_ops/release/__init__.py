"""Releases: what an encoder and its click model are worth, and which of them is served."""
