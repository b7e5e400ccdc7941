"""From what people reviewed to a better checkpoint, or a refusal with figures."""
