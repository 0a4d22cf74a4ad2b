"""Serving: the champion release over HTTP."""
