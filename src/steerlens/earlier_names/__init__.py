"""Earlier addresses that scripts of others import from, one line each; nothing of ours uses them.

`steerlens.__path__` has this folder, so that `steerlens.logit_lens` is the module in here.
"""
