"""Tools on a cache that need no model and no torch: what it holds, and whether it is whole."""
