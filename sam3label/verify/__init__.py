"""A model judges what was labelled: its verdicts stand beside what SAM 3 saw, and never over what a person said."""
