"""The earlier address of `steerlens.engine.logit_lens`."""

from steerlens.engine.logit_lens import *  # noqa: F403
