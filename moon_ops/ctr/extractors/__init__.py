"""Behaviour extractors, a file each: the only part in which click models differ."""
