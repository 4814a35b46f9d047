"""The earlier address of `steerlens.data.concept_sets.axbench`."""

from steerlens.data.concept_sets.axbench import *  # noqa: F403
