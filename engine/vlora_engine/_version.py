"""The one place that holds the version; pyproject.toml and both packages read it."""

__version__ = "0.1.0"
