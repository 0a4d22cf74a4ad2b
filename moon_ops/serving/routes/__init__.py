"""The routes of the service: one file for each group of them, each with ``add(app, service)``."""
