"""The embedded data set: short captioned clips of synthetic sound events."""
