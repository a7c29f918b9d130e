"""Is the model any good, and when: errors by depth, calibration, what its uncertainty is worth, spectra."""
