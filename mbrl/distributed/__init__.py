"""The same data from more processes: Ray workers that imagine, act in environments, and fit members of an ensemble."""
