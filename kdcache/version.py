"""The version: in the package's metadata, in every cache and in every run."""

__version__ = "0.1.0"
