"""What shop systems export, as shops in the ingest layout: one module per system, and what they share."""
