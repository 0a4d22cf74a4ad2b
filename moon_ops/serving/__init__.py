"""Room 6, serving: the champion release over HTTP."""
