set -eu
sql() { psql -v ON_ERROR_STOP=1 -qAt "$(cat /sidecar/coordination/db/dsn) dbname=weather" -c "$1"; }
sql 'CREATE TABLE days (day text, celsius int)'
sql "\copy days FROM /input/weather/week.csv WITH (FORMAT csv, HEADER)"
sql "\copy (SELECT * FROM days ORDER BY celsius DESC LIMIT 1) TO /output/hottest.csv WITH (FORMAT csv)"
