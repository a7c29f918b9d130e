"""Long measurements, each `mbrl bench NAME`; their raw results lie in experiments/results."""
