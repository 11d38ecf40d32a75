"""Labelling at a site without other software: requests in folders, a page, and its answers."""
