"""The earlier address of `steerlens.data.concept_sets`."""

from steerlens.data.concept_sets import *  # noqa: F403
