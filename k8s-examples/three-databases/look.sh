set -eu
sql() { psql -v ON_ERROR_STOP=1 -qAt "$(cat "/sidecar/coordination/$1/dsn") dbname=$2" -c "$3"; }
sql notes notes 'SELECT text FROM notes'
sql shop shop 'SELECT count(*) FROM sold'
