"""A shop's files as they are: found, decoded, and read into columns. Knows neither the lake nor what the columns mean."""
