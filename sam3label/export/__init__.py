"""Labels to datasets. `write` does it, `registry` names the formats, `formats/` holds one module a format."""
