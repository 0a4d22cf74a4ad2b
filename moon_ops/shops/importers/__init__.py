"""Public click logs as shops: one module per data set, and what they share. :func:`moon_ops.shops.imports.import_clicks` runs them."""
