"""Pages a browser opens without a network: sections made of text, tables and figures, in one self-contained file."""
