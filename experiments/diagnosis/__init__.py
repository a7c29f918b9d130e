"""``mbrl fit`` and ``mbrl diagnose``: a dynamics model alone, and a page that says how far it can be trusted."""
