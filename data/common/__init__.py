"""What the commands of `data` share."""
