"""What tests share: tiny random subjects on disk, and the naive score as an oracle."""
