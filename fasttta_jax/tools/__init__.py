"""Commands that look at a config without training it."""
