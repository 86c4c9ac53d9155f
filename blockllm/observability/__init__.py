"""Names of what is measured, and their mapping to Prometheus."""
