"""The edge: one outside thing a module, and each the sole importer of its library."""
