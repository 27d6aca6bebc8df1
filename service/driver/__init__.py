"""One run seen from outside, in the process that was typed: checked, launched, supervised, shown."""
