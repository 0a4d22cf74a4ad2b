"""The command line: `moon`, and what only it calls."""
