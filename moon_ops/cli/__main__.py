"""``python -m moon_ops.cli``: what the console script ``moon`` runs."""

from moon_ops.cli.main import main

main()
