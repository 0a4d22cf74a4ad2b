#!/bin/sh
# Run once, when the data directory is made: a role and a database each for Airflow, MLflow, and Feast's registry with our locks.
set -eu
for name in airflow mlflow feast; do
  password=$(printenv "$(echo "$name" | tr '[:lower:]' '[:upper:]')_DB_PASSWORD")
  psql --quiet --set ON_ERROR_STOP=1 --set name="$name" --set password="$password" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
