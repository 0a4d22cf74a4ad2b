"""Publication: vectors into Feast, tables and indexes, their upkeep, and what is forgotten."""
