"""What a run leaves for people: curves in MLflow, live values for Prometheus, pictures."""
