"""The columns of every table, and what they hold."""
