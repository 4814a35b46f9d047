"""What comes from outside: texts, concept sets, labels, published numbers."""
