"""Training: one loop over any loss, its schedule, held-out data, losses."""
