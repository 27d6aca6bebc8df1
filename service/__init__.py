"""The jobs that a person runs, and what they are made of. Each command is `python -m service.NAME`."""
