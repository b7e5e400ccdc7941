"""Pictures, films and pages for people."""
