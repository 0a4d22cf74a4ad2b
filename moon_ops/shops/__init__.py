"""Where a shop's directory comes from: a simulated shop, and importers of public click logs. They write what anybody could have written."""
