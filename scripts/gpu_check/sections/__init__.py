"""The sections of gpu_check, one a file; the package's own docstring lists them."""
