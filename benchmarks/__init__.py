"""Speed, memory and operations of the compiled programs; see README.md."""
