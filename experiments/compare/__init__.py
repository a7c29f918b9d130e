"""``mbrl compare``: run agents x environments x seeds, whatever interrupts them."""
