#!/bin/sh
# An S3 in the memory of one process, whatever command it is given; a bucket of that name answers the health check's /healthz.
moto_server --host 0.0.0.0 --port 8333 &
server=$!
trap 'kill $server' TERM INT
until curl --silent --fail --output /dev/null http://127.0.0.1:8333/moto-api/; do sleep 0.2; done
curl --silent --output /dev/null --request PUT http://127.0.0.1:8333/healthz
wait $server
