"""What generated texts are measured by, one file per metric."""
