"""What is told of the work while it is done: traces, logs, metrics of jobs, lineage."""
