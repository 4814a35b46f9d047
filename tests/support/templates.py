"""A chat template for the tiny tokenizers."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}w20 {{ m['content'] }} w21 {% endfor %}"
    "{% if add_generation_prompt %}w22{% endif %}"
)
"""A user's turn between `w20` and `w21`, and `w22` before the model's."""


def save_template(model: Path) -> Path:
    """Give the tokenizer in the folder of a model the template."""
    (model / "chat_template.jinja").write_text(TEMPLATE)
    return model
