"""Files to upright pixels. The only room that opens the path of a photo or video."""
