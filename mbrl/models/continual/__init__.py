"""Models of a sequence of tasks: hypernetworks, the usual baselines, and a router for tasks without ids."""
