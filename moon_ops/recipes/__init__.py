"""Named recipes: what is trained and how, as data."""
