"""How good the labels are."""
