"""Configuration: dataclass schemas, and every check that needs no model. Imports no torch."""
