"""Pictures, videos and pages for people."""
