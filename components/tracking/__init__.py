"""What happened in a run, and which policy is live: metrics.jsonl, MLflow, the registry and the promotion gate."""
