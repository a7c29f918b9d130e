"""``mbrl diagnose --oracle``: whether model error or the edge of reach hurts an offline Dyna run."""
