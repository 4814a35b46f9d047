"""Texts: what is steered with, the methods it is compared with, what the texts measure."""
