"""One run as its command handles it: checked, launched, supervised and shown."""
