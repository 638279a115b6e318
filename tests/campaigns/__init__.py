"""Campaigns: many random inputs, kills and clips, as commands; the suite runs each in small."""
