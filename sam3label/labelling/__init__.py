"""The job: media in, store rows out."""
