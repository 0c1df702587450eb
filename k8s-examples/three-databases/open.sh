set -eu
sql() { psql -v ON_ERROR_STOP=1 -qAt "$(cat "/sidecar/coordination/$1/dsn") dbname=$2" -c "$3"; }
sql db1 shop 'CREATE TABLE sold AS SELECT generate_series(1, 1000) AS n'
