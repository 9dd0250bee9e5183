"""Quality checks: rules evaluated on product versions, and what depends on the outcome."""
