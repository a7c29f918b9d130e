"""Is the model any good: errors by depth, measured on data it has not seen."""
