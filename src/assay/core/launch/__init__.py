"""Ways to start a cohort somewhere: local child processes now, a cluster behind the same `Job`."""
