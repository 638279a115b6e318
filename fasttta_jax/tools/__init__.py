"""Commands that report on a config without training it."""
