"""Carrying out: checks before a run, plan, the trip of a run, sweeps, comparison, export."""
