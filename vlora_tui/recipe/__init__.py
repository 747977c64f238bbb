"""A job as data: the model of a recipe, the reader of its TOML file, and mergekit's files."""
