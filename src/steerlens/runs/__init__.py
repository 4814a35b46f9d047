"""Carrying out: plan, checks before a run, the run and its stages, sweeps, comparison, export."""
