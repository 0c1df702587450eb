set -eu
sql() { psql -v ON_ERROR_STOP=1 -qAt "$(cat "/sidecar/coordination/$1/dsn") dbname=$2" -c "$3"; }
sql db1 notes "CREATE TABLE notes AS SELECT 'sold one more' AS text"
sql db2 shop 'INSERT INTO sold VALUES (1001) RETURNING n'
sql db3 shop 'DELETE FROM sold WHERE n > 10'
sql db3 shop 'SELECT count(*) FROM sold'
