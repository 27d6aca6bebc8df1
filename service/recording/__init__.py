"""What people see of a run: curves in MLflow, live values for Prometheus, pictures."""
