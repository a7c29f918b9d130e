"""``mbrl report``: from a folder of runs to a page, figures and tables one can publish."""
