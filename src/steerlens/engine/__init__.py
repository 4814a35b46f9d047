"""One prompt's last position in many rows: run, edit, rank."""
