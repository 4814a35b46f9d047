"""Data of steerlens' default: SAEs of SmolLM2-135M-Instruct, example texts, a card, licences."""
