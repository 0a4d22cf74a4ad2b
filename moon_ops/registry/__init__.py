"""Where versions live: MLflow's registry, and the file of an embedded one read without MLflow."""
