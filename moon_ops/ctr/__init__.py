"""The click model: rows through the Feast SDK, models that read frozen vectors, and their metrics."""
